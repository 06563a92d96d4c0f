//! The launches that find a device's ceilings, through the functions that a measurement calls.

use moe_frontier::gpu::Launcher;
use moe_frontier::kernels::gpu::launches::{ReadStream, clock_stamp, flush, read_stream};

use crate::suite::{Batch, Outcome, Run, bytes_i32, input, read_i32};

/// Words of a read and of a flush.
const WORDS: usize = 4096;
/// Room of one clock stamp, in bytes.
const STAMP_BYTES: u64 = 16 * 1024;

/// Launches each once and checks what it leaves.
pub(crate) fn check(run: &Run) -> Outcome {
    let mut batch = Batch::new(run);
    let count = i32::try_from(WORDS).unwrap();
    let words: Vec<i32> = (0..count).map(|i| i.wrapping_mul(2_654_435)).collect();
    let all = words.iter().fold(0, |all, w| all ^ w);
    let from = input(&mut batch.board, &bytes_i32(&words));
    let to = batch.board.allocate(ReadStream::result_bytes(&batch.board)).unwrap();
    read_stream(&mut batch.board, &ReadStream { from, to }).map_err(|e| e.to_string())?;
    batch.check("read stream".into(), move |board| {
        let got = read_i32(board, to)?.into_iter().fold(0, |all, w| all ^ w);
        if got == all { Ok(()) } else { Err(format!("not all was read: {got:x}, not {all:x}")) }
    });
    let flushed = batch.board.allocate(4 * WORDS as u64).unwrap();
    flush(&mut batch.board, flushed, 7).map_err(|e| e.to_string())?;
    batch.check("flush".into(), move |board| {
        let got = read_i32(board, flushed)?;
        let pairs = got.chunks_exact(4).filter(|v| v[1] == !v[0]).count();
        if pairs == WORDS / 4 { Ok(()) } else { Err(format!("{pairs} vectors were written")) }
    });
    let stamp = batch.board.allocate(STAMP_BYTES).unwrap();
    let poison = batch.poison.cast_signed();
    clock_stamp(&mut batch.board, stamp).map_err(|e| e.to_string())?;
    batch.check("clock stamp".into(), move |board| {
        let written = read_i32(board, stamp)?.into_iter().filter(|w| *w != poison).count();
        if written > 0 { Ok(()) } else { Err("no clock was read".into()) }
    });
    batch.finish()
}
