//! Align: every table as the reference makes it, for few pairs and for many.

use moe_frontier::gpu::Launcher;
use moe_frontier::gpu::params::{STATUS_BAD_EXPERT_ID, STATUS_CAPACITY, Tile};
use moe_frontier::kernels::gpu::launches::{AlignBuffers, align};
use moe_frontier::kernels::stages::PaddedAlignment;
use rand::Rng;

use crate::board::Board;
use crate::routers;
use crate::suite::{self, Batch, Outcome, Run};

/// Buffers of exactly the size that the result needs, so that every access past an end is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    pub(crate) buffers: AlignBuffers,
}

impl Tables {
    pub(crate) fn new(
        board: &mut Board,
        pairs: u32,
        experts: u32,
        table: &PaddedAlignment,
    ) -> Self {
        let rows = u32::try_from(table.sorted_pairs.len()).unwrap();
        let tiles = u32::try_from(table.tiles.len()).unwrap();
        Self::with_capacity(board, pairs, experts, (rows, tiles))
    }

    /// Room for whatever routing.
    pub(crate) fn for_any(board: &mut Board, pairs: u32, experts: u32, block_m: u32) -> Self {
        let active = pairs.min(experts);
        let rows = pairs + active * (block_m - 1);
        Self::with_capacity(board, pairs, experts, (rows, pairs / block_m + active))
    }

    fn with_capacity(
        board: &mut Board,
        pairs: u32,
        experts: u32,
        (capacity_rows, capacity_tiles): (u32, u32),
    ) -> Self {
        let mut words = |count: u32| board.allocate(4 * u64::from(count.max(1))).unwrap();
        let mut buffers = AlignBuffers {
            topk_ids: words(pairs),
            expert_count: words(experts),
            expert_offsets: words(experts + 1),
            sorted_pairs: words(capacity_rows),
            pair_rows: words(pairs),
            tiles: words(4 * capacity_tiles),
            block_counts: words(experts * pairs.div_ceil(1024)),
            header: words(64),
            capacity_rows,
            capacity_tiles,
        };
        buffers.header = board.store(&[0; 256]).unwrap();
        Self { buffers }
    }
}

/// Whether the tables are those of the reference.
pub(crate) fn compare(board: &mut Board, tables: &Tables, table: &PaddedAlignment) -> Outcome {
    let b = &tables.buffers;
    let same = |what: &str, got: Vec<i32>, wanted: &[i32]| match got
        .iter()
        .zip(wanted)
        .position(|(a, b)| a != b)
    {
        Some(at) => Err(format!("{what}[{at}] is {}, not {}", got[at], wanted[at])),
        None => Ok(()),
    };
    same("expert_count", suite::read_i32(board, b.expert_count)?, &table.expert_count)?;
    same("expert_offsets", suite::read_i32(board, b.expert_offsets)?, &table.expert_offsets)?;
    same("sorted_pairs", suite::read_i32(board, b.sorted_pairs)?, &table.sorted_pairs)?;
    same("pair_rows", suite::read_i32(board, b.pair_rows)?, &table.pair_rows)?;
    let tiles: Vec<i32> = table.tiles.iter().flat_map(|t| [t[0], t[1], t[2], 0]).collect();
    let mut got = suite::read_i32(board, b.tiles)?;
    // The last word of a tile is not read by anyone.
    got.iter_mut().skip(3).step_by(4).for_each(|unused| *unused = 0);
    same("tiles", got, &tiles)?;
    let header = routers::header(board, b.header)?;
    let count = |n: usize| u32::try_from(n).unwrap();
    let active = count(table.expert_count.iter().filter(|&&c| c > 0).count());
    let wanted = (count(table.tiles.len()), count(table.sorted_pairs.len()), active);
    let got = (header.num_tiles, header.padded_rows, header.active_experts);
    if got == wanted {
        Ok(())
    } else {
        Err(format!("header has {got:?} tiles, rows and active experts, not {wanted:?}"))
    }
}

/// (pairs, experts, `block_m`, whether some ids name no expert).
const SMALL: [(u32, u32, u32, bool); 4] =
    [(1, 1, 1, false), (40, 5, 8, false), (67, 3, 16, true), (200, 72, 128, false)];
const LARGE: [(u32, u32, u32, bool); 6] = [
    (1025, 256, 32, true),
    (1024, 1024, 1, false),
    (4095, 33, 64, false),
    (4096, 8, 256, true),
    (4097, 8, 4, true),
    (9000, 130, 64, false),
];

/// Runs every case in one batch.
pub(crate) fn check(run: &Run, small: bool) -> Outcome {
    let mut batch = Batch::new(run);
    let cases = SMALL.iter().chain(LARGE.iter().filter(|_| !small));
    for (i, &case) in cases.enumerate() {
        prepare(case, i as u64 + 100 * run.seed, &mut batch)?;
    }
    if !small {
        overflow(&mut batch)?;
    }
    batch.finish()
}

fn prepare(
    (pairs, experts, block_m, bad): (u32, u32, u32, bool),
    seed: u64,
    batch: &mut Batch,
) -> Outcome {
    // Ids as other engines leave them behind in padded batches.
    const STALE: [i32; 5] = [123_456_789, 98_765, 2_071_690_107, -1, i32::MIN];
    let rng = &mut suite::rng(seed);
    let ids: Vec<i32> = (0..pairs)
        .map(|pair| {
            if bad && rng.random_range(0..9) == 0 {
                return [STALE[pair as usize % 5], experts.cast_signed()][rng.random_range(0..2)];
            }
            // Uneven: low ids are more frequent, and some experts stay empty.
            let (a, b) = (rng.random_range(0..experts), rng.random_range(0..experts));
            a.min(b).cast_signed()
        })
        .collect();
    let table = PaddedAlignment::new(&ids, experts.cast_signed(), block_m.cast_signed());
    let board = &mut batch.board;
    let mut tables = Tables::new(board, pairs, experts, &table);
    tables.buffers.topk_ids = suite::input(board, &suite::bytes_i32(&ids));
    align(board, &tables.buffers, (pairs, experts, block_m), true).map_err(|e| e.to_string())?;
    let name =
        format!("align of {pairs} pairs, {experts} experts, tiles of {block_m}, seed {seed}");
    batch.check(name, move |board| {
        compare(board, &tables, &table)?;
        let header = routers::header(board, tables.buffers.header)?;
        let status = if table.bad_id { STATUS_BAD_EXPERT_ID } else { 0 };
        if header.status != status || header.tickets.iter().any(|&t| t != 0) {
            return Err(format!("status {}, not {status}; or a ticket is left", header.status));
        }
        Ok(())
    });
    Ok(())
}

/// Tables that are too short: nothing is written past them, whole tiles that fit are right, and the
/// status says so.
fn overflow(batch: &mut Batch) -> Outcome {
    for pairs in [50_u32, 5000] {
        let (experts, block_m) = (4_u32, 8_u32);
        let ids: Vec<i32> = (0..pairs).map(|pair| (pair % experts).cast_signed()).collect();
        let table = PaddedAlignment::new(&ids, 4, 8);
        let board = &mut batch.board;
        let mut tables = Tables::with_capacity(board, pairs, experts, (24, 2));
        tables.buffers.topk_ids = suite::input(board, &suite::bytes_i32(&ids));
        align(board, &tables.buffers, (pairs, experts, block_m), true)
            .map_err(|e| e.to_string())?;
        batch.check(format!("align of {pairs} pairs into short tables"), move |board| {
            let header = routers::header(board, tables.buffers.header)?;
            if header.status != STATUS_CAPACITY || header.num_tiles > 2 || header.padded_rows > 24 {
                return Err(format!("{header:?}"));
            }
            let mut bytes = [0; 32];
            board.download(tables.buffers.tiles, &mut bytes).map_err(|e| e.to_string())?;
            for (i, got) in Tile::table(&bytes)[..header.num_tiles as usize].iter().enumerate() {
                if [got.expert, got.row0, got.rows] != table.tiles[i] {
                    return Err(format!("tile {i} is {got:?}"));
                }
            }
            Ok(())
        });
    }
    Ok(())
}
