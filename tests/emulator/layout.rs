//! Structs and constants of the device side, as `config_check.cu` writes them, against Rust's.

use moe_frontier::gpu::params::{self, DeviceStruct, RouterScoring};
use moe_frontier::gpu::{Launch, Launcher, ParamBytes};

use crate::suite::{self, Outcome, Run};

/// Most words of the table.
const CAPACITY: u32 = 1024;

pub(crate) fn check(run: &Run) -> Outcome {
    let board = &mut run.board();
    let words = board.allocate(4 * u64::from(CAPACITY)).unwrap();
    let params = params::ConfigCheckParams { words: words.address, capacity: CAPACITY, unused: 0 };
    let launch = Launch {
        kernel: "config_check",
        grid: [1, 1],
        threads: 1,
        shared_bytes: 0,
        maps: Vec::new(),
        params: ParamBytes::of(&params),
        overlaps: false,
    };
    board.launch(&launch).map_err(|e| e.to_string())?;
    let words = suite::read_i32(board, words)?;
    let count = usize::try_from(words[0]).unwrap();
    let mut got = words.get(1..=count).ok_or("the table is longer than its buffer")?.iter();
    for (what, wanted) in expected() {
        let got = got.next().ok_or_else(|| format!("the table ends before {what}"))?;
        if i64::from(*got) != wanted {
            return Err(format!("{what} is {got} on the device and {wanted} here"));
        }
    }
    match got.count() {
        0 => Ok(()),
        more => Err(format!("the device has {more} values that are not compared")),
    }
}

fn expected() -> Vec<(String, i64)> {
    let mut all = Vec::new();
    of::<params::Tile>(&mut all);
    of::<params::WorkspaceHeader>(&mut all);
    of::<params::AlignParams>(&mut all);
    of::<params::RouterParams>(&mut all);
    of::<params::RouterGateParams>(&mut all);
    of::<params::GemmParams>(&mut all);
    of::<params::SplitGemmParams>(&mut all);
    of::<params::CombineParams>(&mut all);
    of::<params::ProbeParams>(&mut all);
    of::<params::ConfigCheckParams>(&mut all);
    let mut constant = |name: &str, value: u32| all.push((name.to_owned(), i64::from(value)));
    constant("sizeof(TensorMap)", 128);
    constant("kMaxExperts", params::MAX_EXPERTS);
    constant("kMaxTopK", params::MAX_TOP_K);
    constant("kMaxGroups", params::MAX_GROUPS);
    constant("kAlignSmallPairs", 4096);
    constant("kStatusNonFiniteLogit", params::STATUS_NON_FINITE_LOGIT);
    constant("kStatusBadExpertId", params::STATUS_BAD_EXPERT_ID);
    constant("kStatusCapacity", params::STATUS_CAPACITY);
    for scoring in RouterScoring::ALL {
        constant(&format!("{scoring:?}"), scoring.value());
    }
    all
}

/// Size of a struct, then place and size of each field.
fn of<S: DeviceStruct>(all: &mut Vec<(String, i64)>) {
    let number = |n: usize| i64::try_from(n).unwrap();
    all.push((format!("sizeof({})", S::NAME), number(size_of::<S>())));
    for field in S::FIELDS {
        let name = format!("{}::{}", S::NAME, field.name);
        all.push((format!("offset of {name}"), number(field.offset)));
        all.push((format!("size of {name}"), number(field.bytes)));
    }
}
