//! Models of the Hugging Face Hub: from the local cache, else fetched once into it.
//!
//! What is fetched is `config.json` and, where the repository has one, `hf_quant_config.json`, of the
//! commit that the revision names. Replies are bounded in size and time; nothing is written outside
//! the cache folder. `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` and
//! `HF_TOKEN_PATH` mean what they mean elsewhere.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::{Repo, RepoType};
use ureq::config::RedirectAuthHeaders;

use crate::files::{create_folder, read_capped, strict, write_atomic};
use crate::{Error, Result};

/// Files that describe a model.
const CONFIG: &str = "config.json";
const QUANTISATION: &str = "hf_quant_config.json";
/// Longest reply, in bytes: descriptions of repositories list all their files.
const CAP: u64 = 64 << 20;
/// Longest time for one reply.
const PATIENCE: Duration = Duration::from_secs(20);
const ENDPOINT: &str = "https://huggingface.co";
/// A file that holds a token is never longer.
const TOKEN_CAP: u64 = 1 << 10;

/// A repository of the Hub at a revision: `org/name` or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubId {
    pub(super) id: String,
    pub(super) revision: String,
}

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Its `config.json`.
    pub(super) config: PathBuf,
    /// The commit.
    pub(super) commit: String,
}

impl HubId {
    /// The repository that a name means, if it has the form of one.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        let (org, repository) = id.split_once('/')?;
        let plain = |text: &str| {
            !text.is_empty()
                && text.len() <= 96
                && !text.starts_with('.')
                && !text.contains("..")
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        (plain(org) && plain(repository) && plain(revision))
            .then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    /// The model's files, if the cache has them.
    pub(super) fn cached(&self) -> Option<Snapshot> {
        Cache::of_environment(self).ok()?.find()
    }

    /// The model's files: those of the cache, else fetched.
    ///
    /// # Errors
    /// [`Error::Io`] when they are neither in the cache nor to be had, saying where to place them.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        let cache = Cache::of_environment(self)?;
        if let Some(snapshot) = cache.find() {
            return Ok(snapshot);
        }
        if std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false"))
        {
            return Err(cache.missing("HF_HUB_OFFLINE is set"));
        }
        cache.fetch()
    }
}

/// The folder of a repository in the local cache.
struct Cache<'a> {
    hub: &'a HubId,
    folder: PathBuf,
}

impl<'a> Cache<'a> {
    fn of_environment(hub: &'a HubId) -> Result<Self> {
        let folder = variable("HF_HUB_CACHE")
            .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home()?.join("hub")));
        let folder = folder
            .ok_or_else(|| Error::usage("model", "no folder for the Hub cache; set HF_HOME"))?;
        Ok(Self::new(hub, &folder))
    }

    fn new(hub: &'a HubId, folder: &Path) -> Self {
        let repository = Repo::new(hub.id.clone(), RepoType::Model);
        Self { hub, folder: folder.join(repository.folder_name()) }
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The snapshot of the revision, if it is complete.
    fn find(&self) -> Option<Snapshot> {
        let named = self.folder.join("refs").join(&self.hub.revision);
        let named = named.is_file().then(|| read_capped(&named, TOKEN_CAP).ok()).flatten();
        // It becomes a part of a path.
        let named = named.and_then(|bytes| String::from_utf8(bytes).ok());
        let named = named.map(|text| text.trim().to_owned()).filter(|text| is_commit(text));
        let commit = named.unwrap_or_else(|| self.hub.revision.clone());
        let config = self.snapshot(&commit).join(CONFIG);
        config.is_file().then_some(Snapshot { config, commit })
    }

    /// What to do without a network.
    fn missing(&self, reason: &str) -> Error {
        let at = self.snapshot("main").join(CONFIG);
        let hint = format!(
            "not in the Hub cache and not fetched ({reason}); download its config.json (and hf_quant_config.json) and pass the folder, or place them at {}",
            at.display()
        );
        Error::io("find", &self.hub.id, io::Error::other(hint))
    }

    /// Fetches the description of the repository, then its files at that commit.
    fn fetch(&self) -> Result<Snapshot> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|e| !e.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim_end_matches('/');
        let HubId { id, revision } = self.hub;
        let described = self.get(&format!("{endpoint}/api/models/{id}/revision/{revision}"))?;
        let described: Description = strict::from_slice(&described, CAP)
            .map_err(|_| self.missing("the Hub's answer is not understood"))?;
        let commit = described.sha;
        if !is_commit(&commit) {
            return Err(self.missing("the Hub named no commit"));
        }
        let folder = self.snapshot(&commit);
        create_folder(&folder)?;
        // The configuration comes last: its presence says that the snapshot is complete.
        for name in [QUANTISATION, CONFIG] {
            let listed = described.siblings.iter().any(|s| s.rfilename == name);
            if listed || name == CONFIG {
                let content = self.get(&format!("{endpoint}/{id}/resolve/{commit}/{name}"))?;
                write_atomic(&folder.join(name), &content, true)?;
            }
        }
        let refs = self.folder.join("refs");
        create_folder(&refs)?;
        write_atomic(&refs.join(revision), commit.as_bytes(), true)?;
        Ok(Snapshot { config: folder.join(CONFIG), commit })
    }

    /// One bounded reply.
    fn get(&self, url: &str) -> Result<Vec<u8>> {
        // Files of a gated repository are redirected within the Hub, which asks for the token again.
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .build()
            .into();
        let mut request = agent.get(url);
        if let Some(token) = token() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut reply = request.call().map_err(|e| self.missing(&reason(&e)))?;
        reply
            .body_mut()
            .with_config()
            .limit(CAP)
            .read_to_vec()
            .map_err(|e| self.missing(&reason(&e)))
    }
}

/// Whether a text can name a commit.
fn is_commit(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A folder or file named by a variable of the environment.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The folder of the Hub's own tools.
fn home() -> Option<PathBuf> {
    variable("HF_HOME")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(variable("HOME")?.join(".cache/huggingface")))
}

/// The user's token: of the environment, else the one that logging in has left.
fn token() -> Option<String> {
    let told = std::env::var("HF_TOKEN").ok();
    let kept = || {
        let path = variable("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))?;
        String::from_utf8(read_capped(&path, TOKEN_CAP).ok()?).ok()
    };
    let plain = |token: String| Some(token.trim().to_owned()).filter(|token| !token.is_empty());
    told.and_then(plain).or_else(|| kept().and_then(plain))
}

/// A failure in one line.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::StatusCode(401 | 403) => {
            "the Hub wants a token with access: set HF_TOKEN".into()
        }
        ureq::Error::StatusCode(404) => "the Hub has no such model or revision".into(),
        other => other.to_string().replace('\n', " "),
    }
}

/// What the Hub says of a repository at a revision.
#[derive(serde::Deserialize)]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

/// A file of it.
#[derive(serde::Deserialize)]
struct Sibling {
    rfilename: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_one_slash_and_plain_letters_is_a_repository() {
        let hub = HubId::parse("Qwen/Qwen3-30B-A3B").unwrap();
        assert_eq!(hub.revision, "main");
        assert_eq!(HubId::parse("a/b@0123abc").unwrap().revision, "0123abc");
        for name in ["a", "a/b/c", "../b", "a/..", "/b", "a/", "a/b@../x", "a b/c", "./b"] {
            assert!(HubId::parse(name).is_none(), "{name}");
        }
    }

    #[test]
    fn the_cache_is_read_by_branch_and_by_commit() {
        let folder = tempfile::tempdir().unwrap();
        let hub = HubId::parse("org/tiny").unwrap();
        let cache = Cache::new(&hub, folder.path());
        assert!(cache.find().is_none());
        let repository = folder.path().join("models--org--tiny");
        std::fs::create_dir_all(repository.join("snapshots/abc123")).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("snapshots/abc123/config.json"), "{}").unwrap();
        std::fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        assert_eq!(cache.find().unwrap().commit, "abc123");
        let pinned = HubId::parse("org/tiny@abc123").unwrap();
        assert!(Cache::new(&pinned, folder.path()).find().is_some());
        let error = cache.missing("offline");
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("models--org--tiny"), "{error}");
    }
}
