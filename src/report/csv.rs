//! A decision map as CSV: one line per cell.

use std::fmt::Write;

use crate::plan::outcome::DecisionMap;

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
