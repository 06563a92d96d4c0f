//! Expert exchange over MPI against one rank, bit for bit, and collectives on integers: `.ci/group` starts it with
//! 1, 2 and 4 ranks. Without the feature `mpi` it says that it was skipped.

#[cfg(not(feature = "mpi"))]
fn main() {
    eprintln!("skipped: mpi_exchange needs the feature `mpi` and mpirun; `bash .ci/group` runs it");
}

#[cfg(feature = "mpi")]
fn main() {
    over_mpi::run();
}

#[cfg(feature = "mpi")]
mod over_mpi {
    use half::bf16;
    use moe_frontier::comm::Group;
    use moe_frontier::comm::mpi::Mpi;
    use moe_frontier::kernels::cpu::CpuBackend;
    use moe_frontier::kernels::exchange::{Copies, Layout, Placement, Wire, combine, dispatch};
    use moe_frontier::kernels::{LayerWeights, MoeShape, Routed, WeightData};
    use moe_frontier::workload::RoutingKind;

    const HIDDEN: usize = 24;
    const INTER: usize = 40;

    /// Values between -1 and 1 that repeat nowhere near.
    fn value(i: usize) -> f32 {
        ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0
    }

    fn weights(experts: usize, format: &str) -> LayerWeights {
        let shape = MoeShape { experts, top_k: 1, hidden: HIDDEN, inter: INTER, gated: true };
        let data = |n: usize, seed: usize| {
            let values: Vec<f32> = (0..n).map(|i| value(seed + i) / 5.0).collect();
            match format {
                "bf16" => WeightData::Bf16(values.iter().map(|v| bf16::from_f32(*v)).collect()),
                _ => WeightData::F32(values),
            }
        };
        let (n13, n2) = (experts * 2 * INTER * HIDDEN, experts * HIDDEN * INTER);
        let layer = LayerWeights::new(shape, data(n13, 1), data(n2, 7)).unwrap();
        if format == "int8" { layer.quantized().unwrap() } else { layer }
    }

    pub(super) fn run() {
        let group = Mpi::begin(None).unwrap();
        let (rank, ranks) = (group.rank(), group.size());
        collectives(&group);
        let backend = CpuBackend::new().with_threads(1).unwrap();
        let mut cases = 0;
        for tokens in [[9, 9, 9, 9], [0, 9, 2, 0], [40, 1, 30, 8]] {
            for (experts, top_k) in [(3, 1), (4, 2), (6, 4), (10, 8)] {
                for routing in ["uniform", "zipf:1.2", "hot:0.9", "all-to-one"] {
                    for format in ["f32", "bf16", "int8"] {
                        let tokens = &tokens[..ranks.min(4)];
                        case(&group, &backend, (tokens, experts, top_k), routing, format);
                        cases += 1;
                    }
                }
            }
        }
        group.barrier().unwrap();
        if rank == 0 {
            println!(
                "{cases} cases on {ranks} ranks equal one rank bit for bit ({})",
                group.library()
            );
        }
    }

    fn case(
        group: &Mpi,
        backend: &CpuBackend,
        (tokens, experts, top_k): (&[usize], usize, usize),
        routing: &str,
        format: &str,
    ) {
        let (rank, ranks) = (group.rank(), group.size());
        let all: usize = tokens.iter().sum();
        let kind: RoutingKind = routing.parse().unwrap();
        let ids = kind.sample(all, experts, top_k, 5).unwrap().ids;
        let x: Vec<f32> = (0..all * HIDDEN).map(|i| value(i + 1_000_000)).collect();
        let routed = Routed {
            weights: (0..ids.len()).map(|i| 0.6 + value(3 * i + 11) / 2.0).collect(),
            ids,
        };
        let mut whole = weights(experts, format);
        whole.shape.top_k = top_k;
        let expected = backend.forward(&whole, &x, &routed).unwrap();
        let first: usize = tokens[..rank].iter().sum();
        let rows = first * HIDDEN..(first + tokens[rank]) * HIDDEN;
        let pairs = first * top_k..(first + tokens[rank]) * top_k;
        let own = Routed {
            ids: routed.ids[pairs.clone()].to_vec(),
            weights: routed.weights[pairs].to_vec(),
        };
        let placement = Placement { experts, ranks };
        let layout = Layout {
            placement,
            top_k,
            hidden: HIDDEN,
            copies: Copies::TokenExpert,
            wire: Wire::F32,
        };
        let (sent, received) = dispatch(group, layout, &x[rows.clone()], &own).unwrap();
        let y = match whole.experts(placement.experts_of(rank)).unwrap() {
            Some(local) => {
                let weights = vec![1.0; received.ids.len()];
                let each = Routed { ids: received.ids.clone(), weights };
                backend.forward(&local, &received.x, &each).unwrap()
            }
            None => Vec::new(),
        };
        let out = combine(group, &sent, &y).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(
            bits(&out),
            bits(&expected[rows]),
            "rank {rank} of {ranks}: {tokens:?} tokens, {experts} experts, top-{top_k}, {routing}, {format}"
        );
    }

    /// Sums and places of small integers, which floats hold exactly.
    fn collectives(group: &Mpi) {
        let (rank, ranks) = (group.rank(), group.size());
        let mut sums: Vec<f32> = (0..1000).map(|i| (rank * 1000 + i) as f32).collect();
        group.all_reduce(&mut sums).unwrap();
        let of_ranks = ranks * (ranks - 1) / 2 * 1000;
        for (i, sum) in sums.iter().enumerate() {
            assert_eq!(sum.to_bits(), ((of_ranks + ranks * i) as f32).to_bits(), "{i}");
        }
        let mut own = [0.0_f32; 3];
        let all: Vec<f32> = (0..3 * ranks).map(|i| i as f32).collect();
        group.reduce_scatter(&all, &mut own).unwrap();
        assert!(own.iter().enumerate().all(|(i, v)| *v == (ranks * (3 * rank + i)) as f32));
        let mut gathered = vec![0; 2 * ranks];
        group.all_gather(&[rank as u8, 9], &mut gathered).unwrap();
        assert!((0..ranks).all(|r| gathered[2 * r] == r as u8 && gathered[2 * r + 1] == 9));
        let mut most = [rank as u64, 7];
        group.max(&mut most).unwrap();
        assert_eq!(most, [ranks as u64 - 1, 7]);
        let mut word = [rank as u8; 5];
        group.broadcast(ranks - 1, &mut word).unwrap();
        assert_eq!(word, [ranks as u8 - 1; 5]);
    }
}
