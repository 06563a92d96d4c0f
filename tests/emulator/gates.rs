//! The router that multiplies x and the gate itself. Integers: every order of summation gives the same
//! logits, so ids and weights are those of the reference to the bit.

use std::path::Path;

use half::bf16;
use moe_frontier::config::{RouterConfig, Scoring};
use moe_frontier::gpu::{Capsule, CapsuleOptions, Launcher};
use moe_frontier::kernels::RouterSpec;
use moe_frontier::kernels::gpu::launches::{RouterGateLaunch, RouterLaunch, router_topk_gate};
use moe_frontier::kernels::gpu::{LogitFormat, Matrix};
use moe_frontier::kernels::reference::{self, DeviceRouting};
use moe_frontier::kernels::stages::PaddedAlignment;

use crate::alignment::{self, Tables};
use crate::routers::{compare_ids, compare_weights, header};
use crate::suite::{self, Batch, Outcome, Run};

#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: u32,
    hidden: u32,
    experts: u32,
    top_k: u32,
    scoring: Scoring,
    /// Rows of a tile, when the router aligns as well.
    align: Option<u32>,
}

fn cases(small: bool) -> Vec<Case> {
    let case = |tokens, hidden, experts, top_k, scoring, align| Case {
        tokens,
        hidden,
        experts,
        top_k,
        scoring,
        align,
    };
    let mut cases = vec![
        case(5, 72, 7, 3, Scoring::Softmax, Some(8)),
        case(1, 136, 40, 4, Scoring::Sigmoid, None),
    ];
    if !small {
        cases.extend([
            case(1, 8, 1, 1, Scoring::Softmax, Some(1)),
            case(16, 64, 8, 2, Scoring::SoftmaxOverTopK, Some(16)),
            case(3, 2056, 12, 3, Scoring::Prototype, None),
            // More columns than a block takes at a time.
            case(2, 8328, 5, 2, Scoring::SoftplusSqrt, Some(4)),
            // Few enough blocks that the emulator can hold all of them at once.
            case(4, 72, 33, 8, Scoring::Softmax, Some(8)),
        ]);
    }
    cases
}

/// Runs every case in one batch.
pub(crate) fn check(run: &Run, small: bool) -> Outcome {
    let mut batch = Batch::new(run);
    for (i, case) in cases(small).into_iter().enumerate() {
        prepare(case, i as u64 + 100 * run.seed, &mut batch)?;
    }
    batch.finish()
}

/// `x . gate^T`, row by row.
fn logits(x: &[bf16], gate: &[bf16], hidden: usize) -> Vec<f32> {
    let product = |(x, g): (&bf16, &bf16)| x.to_f32() * g.to_f32();
    // From positive zero, as the kernel adds.
    let row = |x: &[bf16], g: &[bf16]| x.iter().zip(g).map(product).fold(0.0, |a, b| a + b);
    let rows = x.chunks_exact(hidden);
    rows.flat_map(|x| gate.chunks_exact(hidden).map(move |g| row(x, g))).collect()
}

fn prepare(case: Case, seed: u64, batch: &mut Batch) -> Outcome {
    let rng = &mut suite::rng(seed);
    let capsule = &mut batch.capsule;
    let mut integers = |count: u32| (0..count).map(|_| suite::small_integer(rng)).collect();
    let x: Vec<bf16> = integers(case.tokens * case.hidden);
    let gate: Vec<bf16> = integers(case.experts * case.hidden);
    let (experts, top_k) = (case.experts as usize, case.top_k as usize);
    let wanted = logits(&x, &gate, case.hidden as usize);
    let config = RouterConfig { scoring: case.scoring, ..RouterSpec::softmax().config };
    let spec = RouterSpec { config, bias: Vec::new() };
    let routing = DeviceRouting::default();
    let routed = reference::route_as_device(&wanted, experts, top_k, &spec, routing);
    let (routed, _) = routed.map_err(|e| e.to_string())?;
    let ids: Vec<i32> = routed.ids.iter().map(|id| id.cast_signed()).collect();
    let block_m = case.align.unwrap_or(1).cast_signed();
    let table = PaddedAlignment::new(&ids, case.experts.cast_signed(), block_m);
    let pairs = case.tokens * case.top_k;
    let tables = Tables::new(capsule, pairs, case.experts, &table);
    let topk_ids = capsule.allocate(4 * u64::from(pairs)).unwrap();
    let topk_weights = capsule.allocate(4 * u64::from(pairs)).unwrap();
    let computed = capsule.allocate(4 * wanted.len() as u64).unwrap();
    let launch = RouterGateLaunch {
        router: RouterLaunch {
            logits: Matrix::dense(computed, u64::from(case.experts)),
            format: LogitFormat::F32,
            tokens: case.tokens,
            experts: case.experts,
            top_k: case.top_k,
            spec: &spec,
            bias: None,
            group_top1: false,
            shared: false,
            topk_ids,
            topk_weights,
            header: tables.buffers.header,
            align: case.align.map(|block_m| (tables.buffers, block_m)),
            overlaps: true,
        },
        x: suite::input_view(capsule, &suite::bytes_bf16(&x), case.hidden as usize, 2),
        gate: suite::input(capsule, &suite::bytes_bf16(&gate)),
        hidden: case.hidden,
    };
    // Twice: the second launch finds what the first left behind.
    for _ in 0..2 {
        router_topk_gate(capsule, &launch).map_err(|e| e.to_string())?;
    }
    let aligns = case.align.is_some();
    batch.check(format!("router with gate {case:?} data seed {seed}"), move |capsule| {
        let got = suite::read_f32(capsule, computed)?;
        if let Some(i) = (0..wanted.len()).find(|&i| got[i].to_bits() != wanted[i].to_bits()) {
            return Err(format!("logit {i} is {} instead of {}", got[i], wanted[i]));
        }
        compare_ids(&suite::read_i32(capsule, topk_ids)?, &ids, case.top_k)?;
        compare_weights(&suite::read_f32(capsule, topk_weights)?, &routed.weights, case.top_k)?;
        let header = header(capsule, tables.buffers.header)?;
        if header.status != 0 || header.tickets.iter().any(|&t| t != 0) {
            return Err(format!("status {}, tickets {:?}", header.status, header.tickets));
        }
        if aligns { alignment::compare(capsule, &tables, &table) } else { Ok(()) }
    });
    Ok(())
}

#[test]
fn a_gate_that_does_not_fit_is_refused_before_anything_is_launched() {
    let options = CapsuleOptions::new(Path::new("never run"));
    let capsule = &mut Capsule::new(suite::DEVICE, options).unwrap();
    let mut region = |bytes| capsule.allocate(bytes).unwrap();
    let spec = RouterSpec::softmax();
    let fits = RouterGateLaunch {
        router: RouterLaunch {
            logits: Matrix::dense(region(4 * 2 * 8), 8),
            format: LogitFormat::F32,
            tokens: 2,
            experts: 8,
            top_k: 2,
            spec: &spec,
            bias: None,
            group_top1: false,
            shared: false,
            topk_ids: region(4 * 2 * 2),
            topk_weights: region(4 * 2 * 2),
            header: region(256),
            align: None,
            overlaps: false,
        },
        x: Matrix::dense(region(2 * 2 * 72), 72),
        gate: region(2 * 8 * 72),
        hidden: 72,
    };
    let short = region(2 * 8 * 72 - 2);
    let narrow = RouterLaunch { format: LogitFormat::Bf16, ..fits.router };
    let wide = RouterLaunch { top_k: 9, ..fits.router };
    for (launch, named) in [
        (RouterGateLaunch { hidden: 68, ..fits }, "hidden"),
        (RouterGateLaunch { hidden: 0, ..fits }, "hidden"),
        (RouterGateLaunch { hidden: 80, ..fits }, "at least 80"),
        (RouterGateLaunch { gate: short, ..fits }, "gate"),
        (RouterGateLaunch { router: narrow, ..fits }, "logits"),
        (RouterGateLaunch { router: wide, ..fits }, "top_k"),
    ] {
        let error = router_topk_gate(capsule, &launch).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(named), "{error} does not name {named}");
    }
    router_topk_gate(capsule, &fits).unwrap();
}
