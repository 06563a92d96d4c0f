//! Where CUDA's own libraries lie when the loader does not know them, and how they are opened.
//!
//! NVRTC and cuBLAS come with a toolkit or with Python packages (`nvidia-cuda-nvrtc`,
//! `nvidia-cublas`), mostly outside the loader's search path. They are opened by full path, in the
//! order of their dependencies, and kept open: whoever asks for them by name afterwards finds them.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// A group of libraries that is opened together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaLibrary {
    /// The run-time compiler. Its built-in functions are a library of their own that it opens by name
    /// without a search path, so that one goes first.
    Nvrtc,
    /// Dense products, the peer that grouped products are compared with.
    Cublas,
    /// Collectives between GPUs.
    Nccl,
}

impl CudaLibrary {
    /// Starts of the file names, in the order to open them.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Nvrtc => &["libnvrtc-builtins.so.13", "libnvrtc.so.13"],
            Self::Cublas => &["libcublasLt.so.13", "libcublas.so.13"],
            Self::Nccl => &["libnccl.so.2"],
        }
    }

    /// The package that brings it, for messages.
    pub const fn package(self) -> &'static str {
        match self {
            Self::Nvrtc => "nvidia-cuda-nvrtc==13.0.88",
            Self::Cublas => "nvidia-cublas==13.1.0.3",
            Self::Nccl => "nvidia-nccl-cu13",
        }
    }

    /// Opens the group once for the whole process.
    ///
    /// # Errors
    /// One line that says what was looked for and where.
    pub fn open(self) -> Result<PathBuf, String> {
        static NVRTC: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        static CUBLAS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        static NCCL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let once = match self {
            Self::Nvrtc => &NVRTC,
            Self::Cublas => &CUBLAS,
            Self::Nccl => &NCCL,
        };
        once.get_or_init(|| self.find(&folders())).clone()
    }

    fn find(self, folders: &[PathBuf]) -> Result<PathBuf, String> {
        if let Some(folder) = folders.iter().find(|folder| self.open_from(folder)) {
            return Ok(folder.clone());
        }
        // The loader's own search is last: it may know a folder that is listed nowhere.
        if self.names().iter().all(|name| keep_open(Path::new(name))) {
            return Ok(PathBuf::from("the loader's search path"));
        }
        let searched: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
        let places =
            if searched.is_empty() { "the loader's path".into() } else { searched.join(", ") };
        Err(format!(
            "{} was not found (searched {places}); set CUDA_HOME, or `pip install {}`",
            self.names().last().unwrap_or(&""),
            self.package()
        ))
    }

    fn open_from(self, folder: &Path) -> bool {
        let files: Option<Vec<PathBuf>> =
            self.names().iter().map(|name| versioned(folder, name)).collect();
        files.is_some_and(|files| files.iter().all(|file| keep_open(file)))
    }
}

/// The file of `folder` whose name starts with `name`: built-ins carry a minor version.
fn versioned(folder: &Path, name: &str) -> Option<PathBuf> {
    let exact = folder.join(name);
    if exact.exists() {
        return Some(exact);
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name)))
        .collect();
    found.sort();
    found.pop()
}

/// Opens a library for the rest of the process; whether that worked.
fn keep_open(path: &Path) -> bool {
    // SAFETY: opening runs the library's initialisers. Only NVIDIA's compiler and cuBLAS are named
    // here, whose initialisers have no precondition.
    let Ok(library) = (unsafe { Library::new(path) }) else { return false };
    // Unloading is not supported by these libraries; a leak for the whole process is meant.
    std::mem::forget(library);
    true
}

/// Folders that may hold CUDA's libraries: what the user points at, Python environments, toolkits.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from);
    let toolkits = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(variable);
    let mut found: Vec<PathBuf> = toolkits
        .flat_map(|root| ["lib64", "lib", "targets/x86_64-linux/lib"].map(|sub| root.join(sub)))
        .collect();
    let named = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable);
    found.extend(named.chain(python_prefixes()).flat_map(|prefix| python_folders(&prefix)));
    found.extend(
        ["/usr/local/cuda/lib64", "/usr/local/cuda-13.0/lib64", "/opt/cuda/lib64"]
            .map(PathBuf::from),
    );
    found.retain(|folder| folder.is_dir());
    found
}

/// Prefixes of the Python installations on the search path of commands.
fn python_prefixes() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .filter(|folder| folder.join("python3").exists())
        .filter_map(|folder| folder.parent().map(Path::to_owned))
        .collect()
}

/// Where packages of a Python prefix put CUDA's libraries.
fn python_folders(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(prefix.join("lib")) else { return Vec::new() };
    let is_python = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
    };
    let versions = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| is_python(p));
    versions
        .flat_map(|version| {
            ["site-packages", "dist-packages"].map(|sub| version.join(sub).join("nvidia/cu13/lib"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_one_line_that_says_what_to_install() {
        let empty = tempfile::tempdir().unwrap();
        let reason = CudaLibrary::Cublas.find(&[empty.path().to_owned()]);
        // A machine whose loader knows cuBLAS has nothing to say.
        if let Err(reason) = reason {
            assert!(reason.contains("libcublas.so.13") && reason.contains("pip install"));
            assert!(reason.contains(&empty.path().display().to_string()) && !reason.contains('\n'));
        }
    }

    #[test]
    fn a_file_with_a_minor_version_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libnvrtc-builtins.so.13.0");
        std::fs::write(&file, "").unwrap();
        assert_eq!(versioned(folder.path(), "libnvrtc-builtins.so.13"), Some(file));
        assert_eq!(versioned(folder.path(), "libnvrtc.so.13"), None);
    }

    #[test]
    fn a_file_that_is_no_library_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        for name in CudaLibrary::Cublas.names() {
            std::fs::write(folder.path().join(name), "not a library").unwrap();
        }
        assert!(!CudaLibrary::Cublas.open_from(folder.path()));
    }
}
