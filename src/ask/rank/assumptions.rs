//! The ledger of assumptions: every value that goes into an answer, with its source and whether the
//! user chose it.

use crate::plan::outcome::Assumption;

/// Collects assumptions in the order in which they are made.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Vec<Assumption>,
}

impl Ledger {
    /// Takes the user's value of a flag or else its default, and notes which.
    pub(crate) fn take<T: Copy>(
        &mut self,
        flag: &str,
        given: Option<T>,
        default: (T, &str),
        show: impl Fn(T) -> String,
    ) -> T {
        let value = given.unwrap_or(default.0);
        let source = if given.is_some() { "given" } else { default.1 };
        self.note(flag, &show(value), None, source, given.is_none());
        value
    }

    /// Notes a value that was settled elsewhere.
    pub(crate) fn note(
        &mut self,
        name: &str,
        value: &str,
        range: Option<String>,
        source: &str,
        is_default: bool,
    ) {
        self.entries.push(Assumption {
            name: name.into(),
            value: value.into(),
            range,
            source: source.into(),
            is_default,
        });
    }

    /// Adds the range that the last entry is drawn from.
    pub(crate) fn drawn(&mut self, range: String) {
        if let Some(last) = self.entries.last_mut() {
            last.range = Some(range);
        }
    }

    pub(crate) fn into_entries(self) -> Vec<Assumption> {
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_value_is_told_apart_from_a_default() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.take("--isl", Some(5), (7, "usual"), |v| v.to_string()), 5);
        assert_eq!(ledger.take("--osl", None, (7, "usual"), |v| v.to_string()), 7);
        ledger.drawn("3 to 9".into());
        let entries = ledger.into_entries();
        assert_eq!((entries[0].source.as_str(), entries[0].is_default), ("given", false));
        assert_eq!((entries[1].source.as_str(), entries[1].is_default), ("usual", true));
        assert_eq!(entries[1].range.as_deref(), Some("3 to 9"));
    }
}
