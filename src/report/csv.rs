//! Candidates and decision maps as CSV: one line per candidate or cell.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;

use crate::files::csv::text_cell;
use crate::plan::outcome::{Candidate, DecisionMap};

/// Columns that a reader looks for first; the others follow by the alphabet.
const FIRST: [&str; 6] = ["experts", "top_k", "kind", "best_of_experts", "n_active", "n_total"];

/// Every field of every candidate; those of inner objects as `outer.inner`. A field without a value is
/// empty.
pub(super) fn candidates(all: &[Candidate]) -> String {
    let rows: Vec<BTreeMap<String, String>> = all
        .iter()
        .map(|candidate| {
            let mut row = BTreeMap::new();
            // A candidate has named fields alone, so that it always is an object.
            flatten("", &serde_json::to_value(candidate).unwrap_or_default(), &mut row);
            row
        })
        .collect();
    let names: BTreeSet<&str> =
        rows.iter().flat_map(|row| row.keys().map(String::as_str)).collect();
    let first = FIRST.iter().copied().filter(|name| names.contains(name));
    let rest = names.iter().copied().filter(|name| !FIRST.contains(name));
    let columns: Vec<&str> = first.chain(rest).collect();
    let mut text = columns.join(",") + "\n";
    for row in &rows {
        let cells = columns.iter().map(|c| row.get(*c).map_or("", String::as_str));
        text += &cells.collect::<Vec<_>>().join(",");
        text.push('\n');
    }
    text
}

fn flatten(path: &str, value: &Value, row: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, inner, row);
            }
        }
        Value::Null => {}
        Value::String(text) => {
            row.insert(path.to_owned(), text_cell(text));
        }
        other => {
            row.insert(path.to_owned(), other.to_string());
        }
    }
}

/// Columns `x,y,winner,p_best` by rows of y; `winner` is empty where nothing is feasible.
pub(super) fn decision_map(map: &DecisionMap) -> String {
    let mut text = String::from("x,y,winner,p_best\n");
    for (j, y) in map.y.iter().enumerate() {
        for (i, x) in map.x.iter().enumerate() {
            let winner = map.winner.get(j).and_then(|row| row.get(i)).copied().flatten();
            let chance = map.p_best.get(j).and_then(|row| row.get(i)).copied().unwrap_or(0.0);
            let winner = winner.map_or_else(String::new, |w| w.to_string());
            // Writing to a string cannot fail.
            let at_scale = map.last_is_at_scale && i + 1 == map.x.len();
            let x = if at_scale { "at scale".to_owned() } else { format!("{x:e}") };
            let _ = writeln!(text, "{x},{y:e},{winner},{chance}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sample;

    #[test]
    fn every_candidate_has_a_line_that_reads_back() {
        let report = sample::report();
        let text = candidates(&report.candidates);
        let mut reader = ::csv::Reader::from_reader(text.as_bytes());
        let head = reader.headers().unwrap().clone();
        assert_eq!(head.iter().take(3).collect::<Vec<_>>(), ["experts", "top_k", "kind"]);
        let at = |name: &str| head.iter().position(|h| h == name).unwrap();
        let rows: Vec<::csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), report.candidates.len());
        for (row, candidate) in rows.iter().zip(&report.candidates) {
            assert_eq!(row[at("experts")], candidate.experts.to_string());
            let train: f64 = row[at("train_usd")].parse().unwrap();
            assert!((train / candidate.train_usd - 1.0).abs() < 1e-12);
            assert_eq!(row[at("total_usd")].is_empty(), candidate.total_usd.is_none());
        }
        assert_eq!(candidates(&[]), "\n");
    }

    #[test]
    fn every_cell_has_a_line_and_infeasible_ones_no_winner() {
        let text = decision_map(&sample::report().decision_map.traffic);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 49);
        assert_eq!(lines[0], "x,y,winner,p_best");
        assert_eq!(lines[1], "1e-2,1e9,,0");
        assert!(lines[2].starts_with("1e-1,1e9,32,0.4"), "{}", lines[2]);
        assert_eq!(decision_map(&sample::empty().decision_map.budget).lines().count(), 1);
    }
}
