//! Which modules a list of names means: names, globs and regular expressions, as checkpoints write
//! them.
//!
//! A name covers its module and everything below it, whatever the path in front of `layers.`. Parts
//! of words mean nothing: `gate` is the router and never `gate_proj`.

use std::collections::{HashMap, HashSet};

use regex::Regex;

/// Longest regular expression that is compiled, in bytes of its program.
const REGEX_LIMIT: usize = 1 << 20;

/// Names of one place. Files list every expert of every layer: plain names are looked up, not tried
/// one by one.
#[derive(Debug, Default)]
struct Names {
    plain: HashSet<String>,
    globs: Vec<String>,
}

impl Names {
    fn add(&mut self, name: String) {
        if name.contains(['*', '?']) {
            self.globs.push(name);
        } else {
            self.plain.insert(name);
        }
    }

    /// Whether one of them means a module, one above it, or either without the path in front.
    fn cover(&self, module: &str) -> bool {
        spans(module).any(|span| self.plain.contains(span))
            || self.globs.iter().any(|glob| spans(module).any(|span| is_match(glob, span)))
    }
}

/// A list of modules.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// Names below one layer, without `layers.N.`; an empty one is the whole layer.
    by_layer: HashMap<usize, Names>,
    /// Starts of layer numbers that a glob cut: `layers.1*`.
    by_start: Vec<String>,
    names: Names,
    regexes: Vec<Regex>,
    /// Expressions that are not understood.
    pub(super) odd: Vec<String>,
}

impl Modules {
    /// The modules of these names.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut modules = Self::default();
        for name in names {
            modules.add(name);
        }
        modules
    }

    /// Adds a name, a glob or, after `re:`, a regular expression.
    pub(super) fn add(&mut self, name: &str) {
        if let Some(expression) = name.strip_prefix("re:") {
            self.add_regex(expression);
            return;
        }
        let name = name.trim_end_matches(".weight");
        let below = name.find("layers.").map(|at| &name[at + "layers.".len()..]);
        let Some(below) = below else {
            self.names.add(name.to_owned());
            return;
        };
        let digits = below.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = below.split_at(digits);
        match (number.parse::<usize>(), rest) {
            (Ok(layer), "") => self.by_layer.entry(layer).or_default().add(String::new()),
            (Ok(_), "*") => self.by_start.push(number.to_owned()),
            (Ok(layer), rest) if rest.starts_with('.') => {
                self.by_layer.entry(layer).or_default().add(rest[1..].to_owned());
            }
            _ => self.names.add(format!("layers.{below}")),
        }
    }

    fn add_regex(&mut self, expression: &str) {
        let built =
            regex::RegexBuilder::new(&format!("^(?:{expression})")).size_limit(REGEX_LIMIT).build();
        match built {
            Ok(regex) => self.regexes.push(regex),
            Err(_) => self.odd.push(format!("re:{expression}")),
        }
    }

    /// Whether a module below a layer is in the list.
    pub(super) fn has(&self, layer: usize, module: &str) -> bool {
        let is_whole =
            |names: &Names| names.plain.contains("") || names.globs.iter().any(|g| g == "*");
        let own =
            self.by_layer.get(&layer).is_some_and(|names| is_whole(names) || names.cover(module));
        if own || self.starts(layer) {
            return true;
        }
        let path = format!("layers.{layer}.{module}");
        self.names.cover(&path) || self.regexes.iter().any(|r| matches(r, &path))
    }

    fn starts(&self, layer: usize) -> bool {
        !self.by_start.is_empty() && {
            let number = layer.to_string();
            self.by_start.iter().any(|start| number.starts_with(start.as_str()))
        }
    }

    /// Whether a module outside the layers (embedding, head) is in the list.
    pub(super) fn has_outside(&self, module: &str) -> bool {
        self.names.cover(module) || self.regexes.iter().any(|r| matches(r, module))
    }
}

/// Whether an expression, which is anchored at the start, means a module under any usual prefix.
fn matches(regex: &Regex, module: &str) -> bool {
    const PREFIXES: [&str; 5] =
        ["model.", "", "model.language_model.", "language_model.model.", "backbone."];
    PREFIXES.iter().any(|prefix| regex.is_match(&format!("{prefix}{module}")))
}

/// A module, those above it, and all of these without parts of the path in front.
fn spans(module: &str) -> impl Iterator<Item = &str> {
    let dots = move || module.match_indices('.').map(|(at, _)| at);
    let starts = [0].into_iter().chain(dots().map(|at| at + 1));
    starts.flat_map(move |start| {
        let ends = dots().chain([module.len()]);
        ends.filter(move |end| *end > start).map(move |end| &module[start..end])
    })
}

/// Shell matching with `*` and `?`; a star passes dots.
fn is_match(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if g < glob.len() && glob[g] == b'*' {
            star = Some((g, t));
            g += 1;
        } else if g < glob.len() && (glob[g] == b'?' || glob[g] == text[t]) {
            (g, t) = (g + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (g, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_modules_and_what_is_below_them_and_never_parts_of_words() {
        let list = Modules::new(
            [
                "gate",
                "lm_head",
                "model.layers.3.self_attn",
                "*.mlp.shared_expert.*",
                "model.layers.1*",
            ]
            .into_iter(),
        );
        assert!(list.has(0, "mlp.gate"));
        assert!(!list.has(0, "mlp.gate_proj"));
        assert!(list.has_outside("lm_head"));
        assert!(list.has(3, "self_attn.q_proj") && !list.has(4, "self_attn.q_proj"));
        assert!(list.has(5, "mlp.shared_expert.down_proj"));
        assert!(!list.has(5, "mlp.experts.0.down_proj"));
        assert!(list.has(12, "mlp.experts") && !list.has(21, "mlp.experts"));
    }

    #[test]
    fn globs_and_expressions_cover_every_layer() {
        let list = Modules::new(
            ["model.layers.*.self_attn", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*", "re:(?!x)"]
                .into_iter(),
        );
        assert!(list.has(40, "self_attn.o_proj"));
        assert!(list.has(40, "mlp.down_proj") && !list.has(40, "mlp.experts.0.down_proj"));
        assert_eq!(list.odd, ["re:(?!x)"]);
    }
}
