//! Serves runs of our CPU layer to `run.py`, which takes turns between it and other programs.
//!
//! One request a line on stdin, one answer a line on stdout, files in the current folder; `run.py`
//! describes both. Weights, `x` and logits come from the files that every contender reads. The router
//! and align are part of each run, which the others are spared: they are given ids and weights.

#![expect(clippy::print_stdout, reason = "standard output carries the answers")]

use std::io::{BufRead as _, stdin};
use std::process::ExitCode;
use std::time::Instant;

use half::bf16;
use half::slice::HalfFloatSliceExt as _;
use moe_frontier::kernels::cpu::CpuBackend;
use moe_frontier::kernels::{
    LayerWeights, LoadedLayer, MoeBackend as _, MoeShape, RouterSpec, Stage, WeightData,
};
use moe_frontier::measure::ceilings::ReadTest;
use moe_frontier::measure::timing::Launch as _;
use moe_frontier::{Error, Result};

/// Where the layer's output goes, `[tokens, hidden]` in f32.
const OUTPUT: &str = "ours.out.f32";

/// Bytes of one read of memory, about the weights that one token visits.
const READ_BYTES: usize = 48 << 20;

fn bytes(name: &str) -> Result<Vec<u8>> {
    std::fs::read(name).map_err(|e| Error::io("read", name, e))
}

fn bf16s(name: &str) -> Result<Vec<bf16>> {
    let bytes = bytes(name)?;
    Ok(bytes.as_chunks().0.iter().map(|&pair| bf16::from_le_bytes(pair)).collect())
}

fn f32s(name: &str) -> Result<Vec<f32>> {
    let bytes = bytes(name)?;
    Ok(bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect())
}

/// The numbers of a request.
fn numbers<const N: usize>(words: &[&str]) -> Result<[usize; N]> {
    let parsed: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    <[usize; N]>::try_from(parsed)
        .map_err(|_| Error::usage("request", format!("{words:?} are not {N} whole numbers")))
}

fn load(words: &[&str]) -> Result<Vec<LayerWeights>> {
    let [experts, top_k, hidden, inter, sets] = numbers(words)?;
    let shape = MoeShape { experts, top_k, hidden, inter, gated: true };
    (0..sets)
        .map(|set| {
            let w13 = WeightData::Bf16(bf16s(&format!("w13.{set}.bf16"))?.into());
            LayerWeights::new(
                shape,
                w13,
                WeightData::Bf16(bf16s(&format!("w2.{set}.bf16"))?.into()),
            )
        })
        .collect()
}

/// Nanoseconds of each run, after `unmeasured` ones; the weight sets take turns.
fn runs(
    layer: &mut dyn LoadedLayer,
    sets: usize,
    next: &mut usize,
    (unmeasured, runs): (usize, usize),
) -> Result<String> {
    let mut answer = vec!["ok".to_owned()];
    for run in 0..unmeasured + runs {
        let start = Instant::now();
        layer.run(Stage::Layer, *next % sets)?;
        let elapsed = start.elapsed().as_nanos();
        *next += 1;
        if run >= unmeasured {
            answer.push(elapsed.to_string());
        }
    }
    Ok(answer.join(" "))
}

/// Answers requests about one group of weight sets, until other weights are to be loaded: the words
/// of that request, or none at the end of the input.
fn serve(
    backend: &CpuBackend,
    weights: &[LayerWeights],
    read: &mut ReadTest,
    requests: &mut dyn Iterator<Item = std::io::Result<String>>,
) -> Result<Option<String>> {
    let mut layer = None;
    let mut next = 0;
    for request in requests {
        let request = request.map_err(|e| Error::io("read", "standard input", e))?;
        let words: Vec<&str> = request.split_whitespace().collect();
        let answer = match (words.first().copied(), &mut layer) {
            (Some("load"), ..) => return Ok(Some(request)),
            (Some("input"), _) => {
                let [tokens, sets] = numbers(&words[1..])?;
                let used = weights.get(..sets).unwrap_or_default();
                let mut loaded = backend.load(used, &RouterSpec::softmax(), tokens)?;
                loaded.set_input(&bf16s("x.bf16")?.to_f32_vec(), &f32s("logits.f32")?)?;
                loaded.poison()?;
                loaded.run(Stage::Layer, 0)?;
                let output: Vec<u8> =
                    loaded.output()?.iter().flat_map(|v| v.to_le_bytes()).collect();
                std::fs::write(OUTPUT, output).map_err(|e| Error::io("write", OUTPUT, e))?;
                layer = Some((loaded, sets));
                "ok".to_owned()
            }
            (Some("run"), Some((layer, sets))) => {
                let [unmeasured, measured] = numbers(&words[1..])?;
                runs(layer.as_mut(), *sets, &mut next, (unmeasured, measured))?
            }
            (Some("read"), ..) => {
                let [reads] = numbers(&words[1..])?;
                let mut answer = vec![format!("ok {}", read.bytes())];
                for _ in 0..reads {
                    let start = Instant::now();
                    read.launch(0)?;
                    answer.push(start.elapsed().as_nanos().to_string());
                }
                answer.join(" ")
            }
            _ => return Err(Error::usage("request", format!("{request:?} has no answer here"))),
        };
        println!("{answer}");
    }
    Ok(None)
}

fn serve_all(requests: &mut dyn Iterator<Item = std::io::Result<String>>) -> Result<()> {
    // Launches as long as those of a layer, out of a buffer that `run.py` chose to be larger than the
    // caches: what disturbs the one disturbs the other as much.
    let mut arguments = std::env::args().skip(1);
    let [buffer] = numbers(&[arguments.next().unwrap_or_default().as_str()])?;
    let mut read = ReadTest::new(buffer, READ_BYTES);
    let backend = match arguments.next().as_deref() {
        Some("packed") => CpuBackend::new().with_packed_weights(),
        _ => CpuBackend::new(),
    };
    println!("ready {}, kernels {}", backend.description(), &backend.kernel_sha256()[..12]);
    let mut weights = Vec::new();
    while let Some(request) = serve(&backend, &weights, &mut read, requests)? {
        let words: Vec<&str> = request.split_whitespace().skip(1).collect();
        // The old weights make room first.
        weights.clear();
        weights = load(&words)?;
        println!("ok");
    }
    Ok(())
}

fn main() -> ExitCode {
    match serve_all(&mut stdin().lock().lines()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed {error}");
            ExitCode::FAILURE
        }
    }
}
