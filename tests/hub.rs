//! Models fetched from a Hub that listens on this machine: what is asked, kept, refused and found again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG: &str = r#"{"model_type":"mixtral","hidden_size":64,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"num_local_experts":8,"num_experts_per_tok":2,
"intermediate_size":128,"vocab_size":100,"torch_dtype":"bfloat16"}"#;

/// One request: its path and its token.
type Asked = (String, Option<String>);

/// A Hub with one repository, `org/tiny`; `org/gated` wants the token `secret`.
struct Hub {
    endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked = request(&stream);
                log.lock().unwrap().push(asked.clone());
                // A client that has seen enough hangs up.
                let _ = answer(&stream, &asked);
            }
        });
        Self { endpoint, asked }
    }

    fn paths(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    /// `preset show` of a model, with a cache folder of its own.
    fn show(&self, model: &str, home: &Path, more: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moe-frontier"));
        command.args(["preset", "show", model]);
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"] {
            command.env_remove(name);
        }
        for name in ["HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", home).env("HF_ENDPOINT", &self.endpoint);
        command.envs(more.iter().copied()).output().unwrap()
    }
}

/// Reads the head of a request.
fn request(stream: &TcpStream) -> Asked {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next().and_then(|l| l.split(' ').nth(1).map(str::to_owned));
    let mut token = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            token = Some(value.trim().to_owned());
        }
    }
    (path.unwrap_or_default(), token)
}

fn answer(mut stream: &TcpStream, (path, token): &Asked) -> std::io::Result<()> {
    let mut reply = |status: &str, more: &str, body: &str| {
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n{body}"
        )
    };
    let described = |files: &[&str]| {
        let siblings = files.iter().map(|f| format!("{{\"rfilename\":\"{f}\"}}"));
        format!(
            "{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}",
            siblings.collect::<Vec<_>>().join(",")
        )
    };
    let known = token.as_deref() == Some("Bearer secret");
    match path.as_str() {
        "/api/models/org/tiny/revision/main" => {
            reply("200 OK", "", &described(&["config.json", "weights.bin", "../../evil.json"]))
        }
        "/api/models/org/gated/revision/main" if known => {
            reply("200 OK", "", &described(&["config.json"]))
        }
        "/api/models/org/odd/revision/main" => reply("200 OK", "", "{\"sha\":\"../up\"}"),
        "/api/models/org/endless/revision/main" => {
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            (0..80).try_for_each(|_| stream.write_all(&vec![b' '; 1 << 20]))
        }
        _ if path.starts_with("/api/models/org/gated") => reply("401 Unauthorized", "", ""),
        _ if path.starts_with("/api/resolve-cache/") && known => reply("200 OK", "", CONFIG),
        _ if path == &format!("/org/tiny/resolve/{COMMIT}/config.json") => {
            reply("200 OK", "", CONFIG)
        }
        _ if path == &format!("/org/gated/resolve/{COMMIT}/config.json") => {
            reply("307 Temporary Redirect", "Location: /api/resolve-cache/config.json\r\n", "")
        }
        _ => reply("404 Not Found", "", ""),
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries
        .flatten()
        .flat_map(|e| if e.path().is_dir() { files(&e.path()) } else { vec![e.path()] })
        .collect();
    all.sort();
    all
}

fn refused(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_model_is_fetched_once_pinned_by_commit_and_found_without_a_network() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    let first = hub.show("org/tiny", home.path(), &[]);
    let text = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(first.status.success() && text.contains(COMMIT), "{text}");
    // The weights and whatever else the repository lists stay where they are.
    let expected = [
        "/api/models/org/tiny/revision/main".to_owned(),
        format!("/org/tiny/resolve/{COMMIT}/config.json"),
    ];
    assert_eq!(hub.paths(), expected);
    let repository = home.path().join("hub/models--org--tiny");
    let kept = [
        repository.join("refs/main"),
        repository.join("snapshots").join(COMMIT).join("config.json"),
    ];
    assert_eq!(files(home.path()), kept);

    let again = hub.show("org/tiny", home.path(), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(again.stdout, first.stdout);
    assert_eq!(hub.paths().len(), 2, "the cache was enough");
}

#[test]
fn the_token_of_the_environment_or_of_a_login_follows_the_redirects_of_the_hub() {
    let hub = Hub::start();
    let home = tempfile::tempdir().unwrap();
    refused(&hub.show("org/gated", home.path(), &[]), "set HF_TOKEN");
    let told = hub.show("org/gated", home.path(), &[("HF_TOKEN", "secret")]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "secret\n").unwrap();
    let kept = hub.show("org/gated", home.path(), &[]);
    assert!(kept.status.success(), "{}", String::from_utf8_lossy(&kept.stderr));
}

#[test]
fn what_the_hub_lacks_or_says_wrongly_leaves_no_files() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    refused(&hub.show("org/absent", home.path(), &[]), "no such model or revision");
    refused(&hub.show("org/odd", home.path(), &[]), "named no commit");
    refused(&hub.show("org/endless", home.path(), &[]), "not fetched");
    let offline = hub.show("org/tiny", home.path(), &[("HF_HUB_OFFLINE", "1")]);
    refused(&offline, "place them at");
    assert_eq!(files(home.path()), Vec::<PathBuf>::new());
}
