//! Holds the order of the modules that the head of `src/lib.rs` states, by reading the sources.
//!
//! The sources are read as tokens: comments and strings are gone by then, and a path inside a macro
//! call counts like any other. What is held:
//!
//! - a module uses only itself and modules before it in [`ORDER`]. Code under `#[cfg(test)]` may
//!   look ahead (a record is written by one module and read back by a later one);
//! - the wall: [`WALLED`] modules never touch [`BEHIND_THE_WALL`]. Tests are no exception;
//! - `unsafe` stands only under [`UNSAFE_FOLDERS`], also in tests;
//! - the library has typed errors, no `anyhow`;
//! - only `cli/output.rs` writes to stdout. Tests may print.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Modules of the library; each uses those before it.
const ORDER: [&str; 21] = [
    "units",
    "constants",
    "error",
    "bounds",
    "files",
    "stats",
    "config",
    "workload",
    "record",
    "gpu",
    "comm",
    "kernels",
    "measure",
    "latency",
    "law",
    "serving",
    "plan",
    "calibrate",
    "ask",
    "report",
    "cli",
];
/// Names at the root of the library that come from a module.
const ROOT_NAMES: [(&str, &str); 3] = [("Error", "error"), ("Result", "error"), ("rank", "ask")];
/// What runs from a recorded profile on a machine without a GPU.
const WALLED: [&str; 7] = ["latency", "law", "serving", "plan", "calibrate", "ask", "report"];
/// What runs kernels or times them.
const BEHIND_THE_WALL: [&str; 4] = ["gpu", "comm", "kernels", "measure"];
/// Where `unsafe` is argued: the driver's C interface, the vector instructions, and the memory that a page
/// shares with its module.
const UNSAFE_FOLDERS: [&str; 3] = ["gpu/", "kernels/cpu/simd/", "cli/page.rs"];
/// The one place that writes to stdout.
const STDOUT_FILE: &str = "cli/output.rs";

/// A token with the line it stands on.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// A path from the root of the library, as the code at `line` names it.
#[derive(Clone, Debug, PartialEq)]
struct Reference {
    path: Vec<String>,
    line: usize,
    in_test: bool,
}

/// One file of `src/`: its name below `src/`, the module it is, and its tokens.
struct Source {
    file: String,
    module: Vec<String>,
    tokens: Vec<Token>,
    /// Whether the whole file is compiled for tests alone.
    is_test: bool,
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        let stream: TokenStream = text.parse().unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let stem = file.trim_end_matches(".rs").trim_end_matches("/mod");
        let module = match stem {
            "lib" | "main" => Vec::new(),
            _ => stem.split('/').map(str::to_owned).collect(),
        };
        Self { file: file.to_owned(), module, tokens, is_test: false }
    }

    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |t| &t.text)
    }

    fn is_path_separator(&self, at: usize) -> bool {
        self.text(at) == ":" && self.text(at + 1) == ":"
    }

    /// Position of the bracket that closes the one at `open`.
    fn closing(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for at in open..self.tokens.len() {
            match self.text(at) {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return at;
            }
        }
        self.tokens.len()
    }

    /// Position of the last token of the item that starts at `at`, attributes included.
    fn item_end(&self, mut at: usize) -> usize {
        while at < self.tokens.len() {
            match self.text(at) {
                ";" => return at,
                // `use a::{b, c};` ends at its semicolon.
                "{" if self.text(self.closing(at) + 1) != ";" => return self.closing(at),
                "{" | "(" | "[" => at = self.closing(at) + 1,
                _ => at += 1,
            }
        }
        self.tokens.len()
    }

    /// Where a `#[cfg(test)]` attribute starts at `at`: the position behind it.
    fn after_cfg_test(&self, at: usize) -> Option<usize> {
        let wanted = ["#", "[", "cfg", "(", "test", ")", "]"];
        wanted.iter().enumerate().all(|(i, w)| self.text(at + i) == *w).then_some(at + wanted.len())
    }

    /// For each token, whether it belongs to an item under `#[cfg(test)]`.
    fn test_code(&self) -> Vec<bool> {
        let mut marks = vec![self.is_test; self.tokens.len()];
        for at in 0..self.tokens.len() {
            if let Some(after) = self.after_cfg_test(at) {
                let end = self.item_end(after).min(self.tokens.len() - 1);
                marks[at..=end].fill(true);
            }
        }
        marks
    }

    /// Module files that are declared under `#[cfg(test)]`, as module paths.
    fn test_modules(&self) -> Vec<Vec<String>> {
        let marks = self.test_code();
        let declared = (0..self.tokens.len())
            .filter(|&at| marks[at] && self.text(at) == "mod" && self.text(at + 2) == ";");
        declared.map(|at| [&self.module[..], &[self.text(at + 1).to_owned()]].concat()).collect()
    }

    /// For each token, the module it stands in, inline modules included.
    fn modules(&self) -> Vec<Vec<String>> {
        let mut modules = vec![self.module.clone(); self.tokens.len()];
        for at in 0..self.tokens.len() {
            if self.text(at) == "mod" && self.text(at + 2) == "{" {
                let name = self.text(at + 1).to_owned();
                let end = self.closing(at + 2).min(self.tokens.len() - 1);
                modules[at..=end].iter_mut().for_each(|m| m.push(name.clone()));
            }
        }
        modules
    }

    /// Every path that starts at `crate` or climbs by `super`.
    fn references(&self) -> Vec<Reference> {
        let (tests, modules) = (self.test_code(), self.modules());
        let mut found = Vec::new();
        for at in 0..self.tokens.len() {
            let continues = at >= 2 && self.is_path_separator(at - 2);
            let (base, start) = match self.text(at) {
                // The root under another name would hide what is used of it.
                "crate" if self.text(at + 1) == "as" => (vec!["*".to_owned()], None),
                "crate" if self.is_path_separator(at + 1) => (Vec::new(), Some(at + 3)),
                "super" if !continues && self.is_path_separator(at + 1) => {
                    let mut base = modules[at].clone();
                    let mut next = at;
                    while self.text(next) == "super" {
                        base.pop();
                        next += 3;
                    }
                    (base, Some(next))
                }
                _ => continue,
            };
            let mut paths = Vec::new();
            match start {
                Some(start) => {
                    self.tree(start, &base, &mut paths);
                }
                None => paths.push((base, self.tokens[at].line)),
            }
            let in_test = tests[at];
            found.extend(paths.into_iter().map(|(path, line)| Reference { path, line, in_test }));
        }
        found
    }

    /// Reads one tree of a `use` or the rest of a path at `at`; returns the position behind it.
    fn tree(&self, at: usize, base: &[String], paths: &mut Vec<(Vec<String>, usize)>) -> usize {
        let line = self.tokens.get(at).map_or(0, |t| t.line);
        match self.text(at) {
            "{" => {
                let end = self.closing(at);
                let mut next = at + 1;
                while next < end {
                    next = self.tree(next, base, paths);
                    // `as name`, and the comma.
                    while next < end && self.text(next) != "," {
                        next += 1;
                    }
                    next += 1;
                }
                end + 1
            }
            "self" => {
                paths.push((base.to_vec(), line));
                at + 1
            }
            name => {
                let path = [base, &[name.to_owned()]].concat();
                let is_name = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
                if is_name && self.is_path_separator(at + 1) {
                    return self.tree(at + 3, &path, paths);
                }
                paths.push((path, line));
                at + 1
            }
        }
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    let mut push = |text: String, line| tokens.push(Token { text, line });
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Ident(ident) => push(ident.to_string(), line),
            TokenTree::Punct(punct) => push(punct.as_char().to_string(), line),
            // Neither a string nor a number says anything here.
            TokenTree::Literal(_) => push("\"\"".into(), line),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open.into(), line);
                let mut inner = Vec::new();
                flatten(group.stream(), &mut inner);
                for t in inner {
                    push(t.text, t.line);
                }
                push(close.into(), group.span_close().start().line);
            }
        }
    }
}

fn position(module: &str) -> Option<usize> {
    ORDER.iter().position(|m| *m == module)
}

/// What is wrong with one reference from a top module, if anything.
fn wrong(from: &str, reference: &Reference) -> Option<String> {
    let named = reference.path.first().map_or("*", String::as_str);
    if named == "*" {
        return Some("takes the whole library under another name".into());
    }
    let module = ROOT_NAMES.iter().find(|(name, _)| *name == named).map_or(named, |(_, m)| *m);
    let Some(used) = position(module) else {
        return Some(format!("`{named}` is no module of the order"));
    };
    let behind = BEHIND_THE_WALL.contains(&module);
    if WALLED.contains(&from) && behind {
        return Some(format!("the wall: `{from}` uses `{module}`"));
    }
    (position(from) < Some(used) && !reference.in_test)
        .then(|| format!("`{from}` uses `{module}`, which stands after it"))
}

/// Everything that a set of sources does against the rules, as `file:line: what`.
fn violations(sources: &mut [Source]) -> Vec<String> {
    let test_modules: Vec<_> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut *sources {
        source.is_test = test_modules.iter().any(|m| source.module.starts_with(m));
    }
    sources.iter().flat_map(violations_of).collect()
}

fn violations_of(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let mut report =
        |line: usize, what: &str| found.push(format!("{}:{line}: {what}", source.file));
    if let Some(from) = source.module.first() {
        if position(from).is_none() {
            report(1, &format!("`{from}` is no module of the order"));
        }
        for reference in source.references() {
            if let Some(what) = wrong(from, &reference) {
                report(reference.line, &what);
            }
        }
    }
    let tests = source.test_code();
    for (at, token) in source.tokens.iter().enumerate() {
        let next = source.text(at + 1);
        match token.text.as_str() {
            "unsafe" if !UNSAFE_FOLDERS.iter().any(|f| source.file.starts_with(f)) => {
                report(token.line, "`unsafe` outside its folders");
            }
            "anyhow" if source.file != "main.rs" => report(token.line, "`anyhow` in the library"),
            "println" | "print" if next == "!" && !tests[at] => {
                report(token.line, "prints past `cli::Output`");
            }
            // As a method it says where a started program prints.
            "stdout"
                if next == "("
                    && source.text(at.saturating_sub(1)) != "."
                    && source.file != STDOUT_FILE
                    && !tests[at] =>
            {
                report(token.line, "prints past `cli::Output`");
            }
            _ => {}
        }
    }
    found
}

/// All Rust files below `folder`, as names relative to `src/`.
fn read_folder(folder: &Path, below: &str, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_folder(&entry.path(), &format!("{name}/"), sources);
        } else if Path::new(&name).extension().is_some_and(|e| e == "rs") {
            sources.push(Source::new(&name, &fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

fn library() -> Vec<Source> {
    let mut sources = Vec::new();
    read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    sources
}

/// The violations of made-up files, without their positions.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let mut sources: Vec<Source> = files.iter().map(|(f, t)| Source::new(f, t)).collect();
    violations(&mut sources)
}

fn assert_found(file: &str, text: &str, expected: &[&str]) {
    let found = found(&[(file, text)]);
    let fits = found.len() == expected.len()
        && found.iter().zip(expected).all(|(f, e)| f.starts_with(file) && f.contains(e));
    assert!(fits, "{text}\nfound {found:#?}\nexpected {expected:#?}");
}

#[test]
fn the_library_keeps_its_order_its_wall_and_its_unsafe_code_in_place() {
    let mut sources = library();
    let references: usize = sources.iter().map(|s| s.references().len()).sum();
    assert!(sources.len() > 50 && references > 200, "{} files, {references}", sources.len());
    let found = violations(&mut sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_order_names_exactly_the_modules_of_the_library() {
    let sources = library();
    let root = sources.iter().find(|s| s.file == "lib.rs").unwrap();
    let declared: BTreeSet<&str> = (0..root.tokens.len())
        .filter(|&at| root.text(at) == "mod" && root.text(at + 2) == ";")
        .map(|at| root.text(at + 1))
        .collect();
    assert_eq!(declared, BTreeSet::from(ORDER));
}

#[test]
fn a_look_ahead_is_found_in_every_way_to_write_it() {
    let ahead = &["which stands after it"];
    assert_found("units.rs", "use crate::error::Error;", ahead);
    assert_found("units.rs", "use crate::Result;", ahead);
    assert_found("serving/steady.rs", "use crate::{units::Seconds, plan::Rank, law};", ahead);
    assert_found(
        "serving/steady.rs",
        "use crate::{\n    plan::{self, a::{B, C}},\n};",
        &[ahead[0], ahead[0], ahead[0]],
    );
    assert_found("serving/steady.rs", "fn f() -> f64 { crate::plan::g::<u8>(1) }", ahead);
    assert_found("serving/steady.rs", "fn f() { g!(\"{}\", crate::plan::h()) }", ahead);
    assert_found("serving/steady.rs", "use super::super::plan::Rank;", ahead);
    assert_found("serving/mod.rs", "use super::plan::Rank;", ahead);
    assert_found("serving/mod.rs", "mod inner { use super::super::plan::Rank; }", ahead);
    assert_found("serving/mod.rs", "pub(in crate::plan) struct A;", ahead);
    assert_found("serving/mod.rs", "pub use crate::plan::rank as ours;", ahead);
}

#[test]
fn the_line_of_a_violation_is_named() {
    let found = found(&[("law/a.rs", "//! Head.\n\nuse crate::{\n    units,\n    plan,\n};\n")]);
    assert_eq!(found, ["law/a.rs:5: `law` uses `plan`, which stands after it"]);
}

#[test]
fn the_wall_holds_in_tests_too() {
    for walled in WALLED {
        for behind in BEHIND_THE_WALL {
            let file = format!("{walled}/a.rs");
            assert_found(&file, &format!("use crate::{behind}::X;"), &["the wall"]);
            let test = format!("#[cfg(test)]\nmod tests {{ use crate::{{{behind}::X}}; }}");
            assert_found(&file, &test, &["the wall"]);
        }
    }
}

#[test]
fn latency_reads_records_and_never_measures() {
    assert_found("latency/a.rs", "use crate::record::{Cell, Key};", &[]);
    assert_found("latency/a.rs", "use crate::measure::Session;", &["the wall"]);
    assert_found("latency/a.rs", "use crate::kernels::cpu;", &["the wall"]);
}

#[test]
fn what_is_allowed_is_not_reported() {
    assert_found("serving/steady.rs", "use crate::{Error, Result};\nuse crate::law::Nats;", &[]);
    assert_found("serving/steady.rs", "use super::memory::{self, fits};", &[]);
    assert_found("serving/steady.rs", "pub(crate) fn f() {} pub(super) fn g() {}", &[]);
    assert_found("serving/steady.rs", "mod tests { use super::*; }", &[]);
    assert_found("serving/steady.rs", "// use crate::plan::Rank;\n/* crate::gpu::X */", &[]);
    assert_found(
        "serving/steady.rs",
        "//! See [`crate::plan::rank`].\nconst A: &str = \"crate::gpu\";",
        &[],
    );
    assert_found(
        "measure/a.rs",
        "#[cfg(test)]\nmod tests { use crate::latency::measured::format; }",
        &[],
    );
}

#[test]
fn code_after_a_test_module_is_not_excused_by_it() {
    let text = "#[cfg(test)]\nuse crate::latency::{a, b};\nuse crate::latency::c;";
    assert_found("measure/a.rs", text, &["which stands after it"]);
    let text = "#[cfg(test)]\nmod tests { fn f() {} }\nfn g() { crate::latency::h() }";
    assert_found("measure/a.rs", text, &["which stands after it"]);
    let text = "#[cfg(not(test))]\nuse crate::latency::c;";
    assert_found("measure/a.rs", text, &["which stands after it"]);
}

#[test]
fn a_file_declared_for_tests_is_test_code() {
    let declared = ("measure/mod.rs", "#[cfg(test)]\nmod made_up;");
    let file = ("measure/made_up.rs", "use crate::latency::measured::format;");
    assert!(found(&[declared, file]).is_empty());
    assert_eq!(found(&[("measure/mod.rs", "mod made_up;"), file]).len(), 1);
}

#[test]
fn the_library_cannot_be_taken_under_another_name() {
    assert_found("law/a.rs", "use crate as everything;", &["another name"]);
    assert_found("law/a.rs", "use crate::*;", &["another name"]);
    assert_found("law/mod.rs", "use super::*;", &["another name"]);
    assert_found("law/a.rs", "use crate::{self as everything};", &["another name"]);
}

#[test]
fn an_unknown_module_has_no_place() {
    assert_found("helpers.rs", "", &["no module of the order"]);
    assert_found("law/a.rs", "use crate::helpers::x;", &["no module of the order"]);
}

#[test]
fn unsafe_code_stands_in_its_folders_alone() {
    let text = "fn f() { unsafe { g() } }";
    assert_found("kernels/cpu/gemm.rs", text, &["`unsafe` outside"]);
    assert_found("kernels/cpu/gemm.rs", &format!("#[cfg(test)] mod t {{ {text} }}"), &["`unsafe`"]);
    assert_found("kernels/cpu/simd/x86.rs", text, &[]);
    assert_found("gpu/driver.rs", text, &[]);
    let words = "// unsafe\n#![expect(unsafe_code, reason = \"unsafe\")]";
    assert_found("kernels/cpu/gemm.rs", words, &[]);
}

#[test]
fn anyhow_and_printing_have_their_one_place() {
    assert_found("law/a.rs", "fn f() -> anyhow::Result<()> { g() }", &["`anyhow`"]);
    assert_found("main.rs", "fn main() -> anyhow::Result<()> { g() }", &[]);
    assert_found("law/a.rs", "fn f() { println!(\"a\"); print!(\"a\"); }", &["prints", "prints"]);
    assert_found("main.rs", "fn main() { println!(\"a\"); }", &["prints"]);
    assert_found("cli/law.rs", "fn f() { std::io::stdout().lock(); }", &["prints"]);
    assert_found("cli/output.rs", "fn f() { std::io::stdout().lock(); }", &[]);
    assert_found("measure/a.rs", "fn f(c: &mut Command) { c.stdout(Stdio::piped()); }", &[]);
    assert_found("cli/output.rs", "fn f() { println!(\"a\"); }", &["prints"]);
    assert_found("law/a.rs", "#[cfg(test)] mod t { fn f() { println!(\"a\"); } }", &[]);
}
