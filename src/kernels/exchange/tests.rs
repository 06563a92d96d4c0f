//! Groups of threads against one rank, bit for bit, and against faults that are planted in a group.

use half::bf16;

use super::*;
use crate::comm::threads::{self, Thread};
use crate::comm::{Alone, Group};
use crate::kernels::cpu::CpuBackend;
use crate::kernels::{LayerWeights, MoeShape, WeightData};
use crate::workload::RoutingKind;

const HIDDEN: usize = 24;
const INTER: usize = 40;

/// Values between -1 and 1 that repeat nowhere near.
fn value(i: usize) -> f32 {
    let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    mixed as f32 / 8_388_608.0 - 1.0
}

/// Outputs by a copy per expert, by one per rank, by one per rank in bf16; copies sent and rows.
type Outputs = (Vec<f32>, Vec<f32>, Vec<f32>, (usize, usize));

fn weights(experts: usize, format: &str) -> LayerWeights {
    let shape = MoeShape { experts, top_k: 1, hidden: HIDDEN, inter: INTER, gated: true };
    let data = |n: usize, seed: usize| {
        let values: Vec<f32> = (0..n).map(|i| value(seed + i) / 5.0).collect();
        match format {
            "bf16" => WeightData::Bf16(values.iter().map(|v| bf16::from_f32(*v)).collect()),
            _ => WeightData::F32(values.into()),
        }
    };
    let layer = LayerWeights::new(
        shape,
        data(experts * 2 * INTER * HIDDEN, 1),
        data(experts * HIDDEN * INTER, 7),
    );
    let layer = layer.unwrap();
    if format == "int8" { layer.quantized().unwrap() } else { layer }
}

/// A case: tokens of each rank, experts, top-k, how tokens are routed, format of the weights.
struct Case {
    tokens: Vec<usize>,
    experts: usize,
    top_k: usize,
    routing: &'static str,
    format: &'static str,
}

impl Case {
    fn layout(&self, copies: Copies, wire: Wire) -> Layout {
        let placement = Placement { experts: self.experts, ranks: self.tokens.len() };
        Layout { placement, top_k: self.top_k, hidden: HIDDEN, copies, wire }
    }

    fn all(&self) -> (Vec<f32>, Routed) {
        let tokens = self.tokens.iter().sum();
        let kind: RoutingKind = self.routing.parse().unwrap();
        let ids = kind.sample(tokens, self.experts, self.top_k, 5).unwrap().ids;
        let weights = (0..ids.len()).map(|i| 0.6 + value(3 * i + 11) / 2.0).collect();
        ((0..tokens * HIDDEN).map(|i| value(i + 1_000_000)).collect(), Routed { ids, weights })
    }

    /// The part of a rank.
    fn of(&self, rank: usize) -> (Vec<f32>, Routed) {
        let (x, routed) = self.all();
        let first: usize = self.tokens[..rank].iter().sum();
        let (x0, p0) = (first * HIDDEN, first * self.top_k);
        let (x1, p1) = (x0 + self.tokens[rank] * HIDDEN, p0 + self.tokens[rank] * self.top_k);
        let routed =
            Routed { ids: routed.ids[p0..p1].to_vec(), weights: routed.weights[p0..p1].to_vec() };
        (x[x0..x1].to_vec(), routed)
    }

    /// The layer over a group.
    fn layer(&self, group: &dyn Group, layout: Layout, (x, routed): (&[f32], &Routed)) -> Vec<f32> {
        let (sent, rows) = dispatch(group, layout, x, routed).unwrap();
        let y = self.experts_on(layout.placement.experts_of(group.rank()), &rows);
        combine(group, &sent, &y).unwrap()
    }

    /// What experts make of their rows.
    fn experts_on(&self, experts: std::ops::Range<usize>, rows: &Received) -> Vec<f32> {
        let Some(local) = weights(self.experts, self.format).experts(experts).unwrap() else {
            assert!(rows.ids.is_empty());
            return Vec::new();
        };
        let routed = Routed { ids: rows.ids.clone(), weights: vec![1.0; rows.ids.len()] };
        CpuBackend::new().forward(&local, &rows.x, &routed).unwrap()
    }

    /// One rank with all tokens and experts, by the layer's own kernel.
    fn on_one_rank(&self) -> Vec<f32> {
        let mut whole = weights(self.experts, self.format);
        whole.shape.top_k = self.top_k;
        let (x, routed) = self.all();
        CpuBackend::new().forward(&whole, &x, &routed).unwrap()
    }

    /// One rank that adds up, for each rank of the group, the experts that it would hold, and then those sums.
    fn by_ranks(&self, wire: Wire) -> Vec<f32> {
        let one = Layout {
            placement: Placement { experts: self.experts, ranks: 1 },
            ..self.layout(Copies::TokenExpert, wire)
        };
        let placement = self.layout(Copies::TokenRank, wire).placement;
        let (x, routed) = self.all();
        let (_, rows) = dispatch(&Alone, one, &x, &routed).unwrap();
        let y = self.experts_on(0..self.experts, &rows);
        let mut out = vec![0.0; x.len()];
        for (token, out) in out.chunks_exact_mut(HIDDEN).enumerate() {
            let mut is_first = true;
            for rank in 0..placement.ranks {
                let mut sum: Option<Vec<f32>> = None;
                for slot in 0..self.top_k {
                    let pair = token * self.top_k + slot;
                    if placement.owner(routed.ids[pair] as usize) != rank {
                        continue;
                    }
                    let row = &y[pair * HIDDEN..][..HIDDEN];
                    let fresh = sum.is_none();
                    let sum = sum.get_or_insert_with(|| vec![0.0; HIDDEN]);
                    add(sum, routed.weights[pair], row, fresh);
                }
                let Some(sum) = sum else { continue };
                let (mut sent, mut arrived) = (Vec::new(), Vec::new());
                wire.write(&sum, &mut sent);
                wire.read(&sent, &mut arrived);
                add(out, 1.0, &arrived, is_first);
                is_first = false;
            }
        }
        out
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for tokens in [&[9][..], &[5, 4], &[0, 9], &[2, 3, 0, 4], &[1, 1, 1, 1], &[40, 2, 30, 8]] {
        for (experts, top_k) in [(3, 1), (4, 2), (6, 4), (10, 8), (32, 2)] {
            for routing in ["uniform", "zipf:1.2", "hot:0.9", "all-to-one"] {
                for format in ["f32", "bf16", "int8"] {
                    all.push(Case { tokens: tokens.to_vec(), experts, top_k, routing, format });
                }
            }
        }
    }
    all
}

#[test]
fn a_group_makes_of_tokens_what_one_rank_does_bit_for_bit() {
    let (mut checked, mut moved, mut idle) = (0, 0, 0);
    for case in cases() {
        let expected = bits(&case.on_one_rank());
        let by_ranks = bits(&case.by_ranks(Wire::F32));
        let rounded = bits(&case.by_ranks(Wire::Bf16));
        let ranks = case.tokens.len();
        let outputs = threads::run(ranks, |group: &Thread| {
            let (x, routed) = case.of(group.rank());
            let layer = |copies, wire| case.layer(group, case.layout(copies, wire), (&x, &routed));
            let layout = case.layout(Copies::TokenRank, Wire::F32);
            let (sent, rows) = dispatch(group, layout, &x, &routed).unwrap();
            let sent: usize = sent.sent().iter().sum();
            (
                layer(Copies::TokenExpert, Wire::F32),
                layer(Copies::TokenRank, Wire::F32),
                layer(Copies::TokenRank, Wire::Bf16),
                (sent, rows.ids.len()),
            )
        });
        let at = |of: fn(&Outputs) -> &Vec<f32>| {
            bits(&outputs.iter().flat_map(|o| of(o).clone()).collect::<Vec<_>>())
        };
        let name = format!(
            "{:?} tokens, {} experts, top-{}, {}, {}",
            case.tokens, case.experts, case.top_k, case.routing, case.format
        );
        assert_eq!(at(|o| &o.0), expected, "a copy per expert: {name}");
        assert_eq!(at(|o| &o.1), by_ranks, "a copy per rank: {name}");
        assert_eq!(at(|o| &o.2), rounded, "a copy per rank in bf16: {name}");
        let pairs = case.tokens.iter().sum::<usize>() * case.top_k;
        assert_eq!(outputs.iter().map(|o| o.3.1).sum::<usize>(), pairs, "every pair has a row");
        checked += 1;
        moved += usize::from(outputs.iter().map(|o| o.3.0).sum::<usize>() < pairs);
        idle += usize::from(outputs.iter().any(|o| o.3.1 == 0));
    }
    assert_eq!(checked, 360);
    assert!(moved > 50, "copies per rank save rows in {moved} cases");
    assert!(idle > 50, "ranks without rows occur in {idle} cases");
}

#[test]
fn copies_per_rank_stay_within_the_rounding_of_their_sums() {
    for case in cases() {
        let (exact, other) = (case.on_one_rank(), case.by_ranks(Wire::F32));
        let largest = exact.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for (a, b) in exact.iter().zip(&other) {
            // One rounding for each of at most eight terms, none larger than some multiple of the result.
            assert!((a - b).abs() <= 32.0 * f32::EPSILON * largest, "{a} {b}");
        }
    }
}

/// What goes wrong in a group.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// One row never arrives.
    DroppedRow,
    /// The rows of two slots change places.
    SwappedSlots,
    /// What comes from the second rank is taken for the first's.
    ForgottenOffset,
}

/// A group that does one thing wrong, in the transfer of this number.
struct Faulty<'a> {
    group: &'a Thread,
    fault: Fault,
    transfer: usize,
    seen: std::cell::Cell<usize>,
}

impl Group for Faulty<'_> {
    fn rank(&self) -> usize {
        self.group.rank()
    }
    fn size(&self) -> usize {
        self.group.size()
    }
    fn library(&self) -> String {
        self.group.library()
    }
    fn barrier(&self) -> Result<()> {
        self.group.barrier()
    }
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        self.group.broadcast(root, bytes)
    }
    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        self.group.all_gather(own, all)
    }
    fn all_to_all_v(
        &self,
        send: (&[u8], &[usize]),
        (receive, parts): (&mut [u8], &[usize]),
    ) -> Result<()> {
        self.group.all_to_all_v(send, (receive, parts))?;
        self.seen.set(self.seen.get() + 1);
        if self.seen.get() != self.transfer || self.group.rank() != 0 {
            return Ok(());
        }
        let row = HIDDEN * 4;
        match self.fault {
            Fault::DroppedRow => receive[..row].fill(0),
            Fault::SwappedSlots => {
                let (a, b) = receive.split_at_mut(row);
                a.swap_with_slice(&mut b[..row]);
            }
            Fault::ForgottenOffset => receive.rotate_left(parts[0]),
        }
        Ok(())
    }
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        self.group.all_reduce(values)
    }
    fn reduce_scatter(&self, all: &[f32], own: &mut [f32]) -> Result<()> {
        self.group.reduce_scatter(all, own)
    }
    fn max(&self, values: &mut [u64]) -> Result<()> {
        self.group.max(values)
    }
}

#[test]
fn a_dropped_row_swapped_slots_and_a_forgotten_offset_show() {
    let case = Case { tokens: vec![7, 5], experts: 4, top_k: 2, routing: "uniform", format: "f32" };
    let expected = bits(&case.on_one_rank());
    // Rows on their way out are the third transfer, on their way back the fourth.
    for fault in [Fault::DroppedRow, Fault::SwappedSlots, Fault::ForgottenOffset] {
        for transfer in [3, 4, usize::MAX] {
            let outputs = threads::run(2, |group: &Thread| {
                let seen = std::cell::Cell::new(0);
                let faulty = Faulty { group, fault, transfer, seen };
                let (x, routed) = case.of(group.rank());
                let layout = case.layout(Copies::TokenExpert, Wire::F32);
                case.layer(&faulty, layout, (&x, &routed))
            });
            let same = bits(&outputs.concat()) == expected;
            assert_eq!(same, transfer == usize::MAX, "{fault:?} in transfer {transfer}");
        }
    }
}

#[test]
fn input_that_does_not_fit_is_refused() {
    let layout = Layout {
        placement: Placement { experts: 2, ranks: 1 },
        top_k: 1,
        hidden: 2,
        copies: Copies::TokenExpert,
        wire: Wire::F32,
    };
    let routed = |ids: &[u32]| Routed { ids: ids.to_vec(), weights: vec![1.0; ids.len()] };
    let refused = |layout: Layout, x: &[f32], ids: &[u32]| {
        dispatch(&Alone, layout, x, &routed(ids)).unwrap_err().exit_code()
    };
    assert_eq!(refused(layout, &[1.0; 3], &[0]), 2);
    assert_eq!(refused(layout, &[1.0; 2], &[2]), 2);
    let two = Layout { placement: Placement { experts: 2, ranks: 2 }, ..layout };
    assert_eq!(refused(two, &[1.0; 2], &[0]), 2);
    let (sent, _) = dispatch(&Alone, layout, &[1.0, 2.0], &routed(&[1])).unwrap();
    assert_eq!((sent.sent(), sent.received()), (&[1][..], &[1][..]));
    assert_eq!(combine(&Alone, &sent, &[1.0]).unwrap_err().exit_code(), 2);
}

#[test]
fn experts_lie_in_blocks_as_equal_as_can_be() {
    for (experts, ranks, sizes) in
        [(8, 4, vec![2, 2, 2, 2]), (6, 4, vec![2, 2, 1, 1]), (3, 4, vec![1, 1, 1, 0])]
    {
        let placement = Placement { experts, ranks };
        let found: Vec<usize> = (0..ranks).map(|r| placement.experts_of(r).len()).collect();
        assert_eq!(found, sizes);
        for rank in 0..ranks {
            assert!(placement.experts_of(rank).all(|e| placement.owner(e) == rank));
        }
    }
}
