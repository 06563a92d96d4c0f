//! The launches that are part of no layer: those that find a device's ceilings, through the functions that
//! a measurement calls, and those that ask single instructions.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use flate2::{Compression, GzBuilder};
use half::bf16;
use moe_frontier::gpu::params::{GemmParams, ProbeParams};
use moe_frontier::gpu::{DeviceAddress, Launch, Launcher, ParamBytes};
use moe_frontier::kernels::gpu::launches::{
    INSTRUCTIONS, ReadPath, ReadStream, clock_stamp, copy_stream, flush, probe_instruction,
    read_stream,
};

use crate::driver;
use crate::suite::{Batch, Outcome, Run, bytes_bf16, bytes_i32, input, read_bf16, read_i32};

/// Words of a read and of a flush.
const WORDS: usize = 4096;
/// Words of a read in boxes: two turns of the ring for each of two multiprocessors, and a box.
const BULK_WORDS: usize = 25 * 8192;
/// Room of one clock stamp, in bytes.
const STAMP_BYTES: u64 = 16 * 1024;

/// Launches each once and checks what it leaves; names of the kernels.
pub(crate) fn check(run: &Run) -> Result<BTreeSet<&'static str>, String> {
    let mut batch = Batch::new(run);
    for path in [ReadPath::Registers, ReadPath::Caches] {
        read(&mut batch, WORDS, path)?;
    }
    if batch.board.facts().is_hopper() {
        read(&mut batch, BULK_WORDS, ReadPath::SharedMemory)?;
    }
    let copied = batch.board.allocate(4 * WORDS as u64).unwrap();
    let words = noise(WORDS);
    let from = input(&mut batch.board, &bytes_i32(&words));
    copy_stream(&mut batch.board, from, copied).map_err(|e| e.to_string())?;
    batch.check("copy".into(), move |board| {
        if read_i32(board, copied)? == words { Ok(()) } else { Err("not all was copied".into()) }
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
    gate(&mut batch)?;
    gather(&mut batch)?;
    let launched = batch.board.launched().into_iter().collect();
    batch.finish()?;
    Ok(launched)
}

fn noise(words: usize) -> Vec<i32> {
    (0..i32::try_from(words).unwrap()).map(|i| i.wrapping_mul(2_654_435) ^ (i << 13)).collect()
}

fn read(batch: &mut Batch, count: usize, path: ReadPath) -> Outcome {
    let words = noise(count);
    let all = words.iter().fold(0, |all, w| all ^ w);
    let from = input(&mut batch.board, &bytes_i32(&words));
    let to = batch.board.store(&vec![0; result_bytes(batch)]).unwrap();
    read_stream(&mut batch.board, &ReadStream { from, to }, path).map_err(|e| e.to_string())?;
    batch.check(format!("read {path:?}"), move |board| {
        let got = read_i32(board, to)?.into_iter().fold(0, |all, w| all ^ w);
        if got == all { Ok(()) } else { Err(format!("not all was read: {got:x}, not {all:x}")) }
    });
    Ok(())
}

fn result_bytes(batch: &Batch) -> usize {
    usize::try_from(ReadStream::result_bytes(&batch.board)).unwrap()
}

/// The gate with an open door, and one that nobody opens: it ends by itself.
fn gate(batch: &mut Batch) -> Outcome {
    for open in [1, 0] {
        let flag = batch.board.store(&bytes_i32(&[open; 4])).unwrap();
        let params = ProbeParams {
            from: DeviceAddress::NULL,
            to: DeviceAddress::NULL,
            flag: flag.address,
            bytes: 0,
            limit_ns: 50_000,
            variant: 0,
            seed: 0,
        };
        launch(&mut batch.board, "probe_gate", 1, ParamBytes::of(&params))?;
    }
    Ok(())
}

/// Rows of x as a table of pairs has them: what moving activations instead of indices would do.
fn gather(batch: &mut Batch) -> Outcome {
    const WIDTH: usize = 264;
    const PAIRS: [i32; 5] = [0, 5, -1, 2, 3];
    const TOP_K: u32 = 2;
    let row = |t: i16| (0..264_i16).map(move |i| bf16::from_f32(f32::from(i + 1000 * t)));
    let x: Vec<bf16> = (0..3).flat_map(row).collect();
    let a = input(&mut batch.board, &bytes_bf16(&x));
    let sorted_pairs = input(&mut batch.board, &bytes_i32(&PAIRS));
    let mut words = [0; 64];
    words[1] = i32::try_from(PAIRS.len()).unwrap();
    let header = input(&mut batch.board, &bytes_i32(&words));
    let out = batch.board.allocate((PAIRS.len() * WIDTH * 2) as u64).unwrap();
    let params = GemmParams {
        a: a.address,
        b: DeviceAddress::NULL,
        b_scale: DeviceAddress::NULL,
        out: out.address,
        header: header.address,
        tiles: DeviceAddress::NULL,
        sorted_pairs: sorted_pairs.address,
        topk_weights: DeviceAddress::NULL,
        accumulate: DeviceAddress::NULL,
        a_stride: WIDTH as u64,
        accumulate_stride: 0,
        columns: 0,
        depth: u32::try_from(WIDTH).unwrap(),
        top_k: TOP_K,
        gate_first: 0,
    };
    launch(&mut batch.board, "permute_gather_bf16", 256, ParamBytes::of(&params))?;
    batch.check("gather".into(), move |board| {
        let got = read_bf16(board, out)?;
        for (pair, got) in PAIRS.iter().zip(got.chunks_exact(WIDTH)) {
            let token = usize::try_from(*pair).map(|p| p / 2);
            let right = match token {
                Ok(token) => got == &x[token * WIDTH..(token + 1) * WIDTH],
                Err(_) => got.iter().all(|v| *v == bf16::ZERO),
            };
            if !right {
                return Err(format!("the row of pair {pair} is another's"));
            }
        }
        Ok(())
    });
    Ok(())
}

fn launch(
    launcher: &mut dyn Launcher,
    kernel: &'static str,
    threads: u32,
    params: ParamBytes,
) -> Outcome {
    let launch = Launch {
        kernel,
        grid: [1, 1],
        threads,
        shared_bytes: 0,
        maps: Vec::new(),
        params,
        overlaps: false,
    };
    launcher.launch(&launch).map_err(|e| e.to_string())
}

/// Runs every instruction probe that the device has and compares its words with those that are kept; names
/// of the kernels. With `PROBES_WRITE` set the words are kept instead, of the emulator alone.
pub(crate) fn instructions(run: &Run) -> Result<BTreeSet<&'static str>, String> {
    let mut launched = BTreeSet::new();
    let (mut wrong, mut lines) = (Vec::new(), Vec::new());
    for instruction in INSTRUCTIONS {
        let mut board = run.board();
        if !instruction.runs_on(board.facts()) {
            eprintln!("SKIPPED: {}: not on this device", instruction.name);
            continue;
        }
        eprintln!("{}", instruction.name);
        let left = probe_instruction(&mut board, instruction)
            .map_err(|e| format!("{} [{}]: {e}", instruction.name, run.label()))?;
        launched.extend(board.launched());
        lines.push(line(instruction.name, &left));
        if let Err(difference) = instruction.compare(&left) {
            wrong.push(format!("{}: {difference}", instruction.name));
        }
    }
    if std::env::var_os("PROBES_WRITE").is_some() && !run.is_on_gpu() {
        keep(&lines.concat());
        return Ok(launched);
    }
    if wrong.is_empty() { Ok(launched) } else { Err(wrong.join("\n")) }
}

fn line(name: &str, words: &[u32]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:x}")).collect();
    format!("{name} {}\n", words.join(" "))
}

fn keep(text: &str) {
    let path = driver::kernels_folder().join("probes.golden.gz");
    let file = fs::File::create(&path).unwrap();
    // No name and no date: equal words make an equal file.
    let mut encoder = GzBuilder::new().mtime(0).write(file, Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
    eprintln!("wrote {}", path.display());
}
