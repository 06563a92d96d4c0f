//! The prior that comes with the program: constants of engines and of groups with open rows.
//!
//! Made by `just calibrate` from the open rows that the file names; nothing else enters.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::calibrate::constants::Constants;
use crate::calibrate::pool::{Group, LEVELS};
use crate::{Error, Result};

/// The file that is embedded.
const FILE: &str = include_str!("prior.json");

/// Names the document.
pub const SCHEMA: &str = "moe-frontier/engine-prior";

/// Prior of engine constants with its provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prior {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of the layout.
    pub schema_version: String,
    /// Files of rows: name, SHA-256, rows that were fitted.
    pub sources: Vec<RowSource>,
    /// How far predictions of groups without rows are off.
    pub new_group: Errors,
    /// The same with five own rows.
    pub own_rows: Errors,
    /// Engines without a group.
    pub engines: Vec<Node>,
    /// Groups.
    pub groups: Vec<Node>,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSource {
    /// Name.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Rows that were fitted.
    pub rows: usize,
}

/// Errors on held-out rows, as they scale intervals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// Half width of 95 % intervals of ln TPOT over its standard deviation.
    pub tpot_z95: f64,
    /// Half width of 95 % intervals of ln TTFT.
    pub ttft_half: f64,
}

/// Constants of an engine, or of a group of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Engine; model and device empty for the engine itself.
    pub group: Group,
    /// Rows below it.
    pub rows: usize,
    /// Its constants.
    pub constants: Constants,
}

/// What is known of a deployment's constants before its own runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The constants, as wide as everything that is not known makes them.
    pub constants: Constants,
    /// Open rows of the same model, device and engine behind them.
    pub rows: usize,
    /// Errors that scale the interval.
    pub errors: Errors,
}

impl Prior {
    /// The shipped one.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the embedded file is damaged.
    pub fn shipped() -> Result<&'static Self> {
        static READ: OnceLock<std::result::Result<Prior, String>> = OnceLock::new();
        READ.get_or_init(|| serde_json::from_str(FILE).map_err(|e| e.to_string()))
            .as_ref()
            .map_err(|e| Error::bad_file("prior.json", e.clone()))
    }

    /// What is known of a group: its own node, else its engine's, else nothing but the defaults.
    pub fn of(&self, group: &Group) -> Known {
        let [_, engine_level, group_level, source_level] = &LEVELS;
        if let Some(node) = self.groups.iter().find(|n| n.group == *group) {
            let constants = node.constants.clone();
            return Known {
                constants: constants.widened(&source_level.tpot, &source_level.ttft),
                rows: node.rows,
                errors: self.new_group,
            };
        }
        let of_engine = self.engines.iter().find(|n| n.group.engine == group.engine);
        let constants = match of_engine {
            Some(node) => node.constants.clone(),
            None => Constants {
                tpot: [0.0; 5],
                tpot_covariance: [[0.0; 5]; 5],
                ttft: [0.0; 4],
                ttft_covariance: [[0.0; 4]; 4],
            }
            .widened(&engine_level.tpot, &engine_level.ttft),
        };
        let constants = constants
            .widened(&group_level.tpot, &group_level.ttft)
            .widened(&source_level.tpot, &source_level.ttft);
        Known { constants, rows: 0, errors: self.new_group }
    }
}
