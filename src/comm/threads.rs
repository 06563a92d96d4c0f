//! A group whose ranks are threads of one test.

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use super::{Group, check_parts, check_shares};
use crate::Result;

/// One rank of a group of threads.
pub(crate) struct Thread {
    rank: usize,
    shared: Arc<Shared>,
}

struct Shared {
    barrier: Barrier,
    /// What each rank has put up for the others.
    posted: Mutex<Vec<Vec<u8>>>,
}

/// Runs `work` once a rank, in threads of their own; the results in the order of ranks.
pub(crate) fn run<T: Send>(ranks: usize, work: impl Fn(&Thread) -> T + Sync) -> Vec<T> {
    let posted = Mutex::new(vec![Vec::new(); ranks]);
    let shared = Arc::new(Shared { barrier: Barrier::new(ranks), posted });
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..ranks)
            .map(|rank| {
                let (shared, work) = (Arc::clone(&shared), &work);
                scope.spawn(move || work(&Thread { rank, shared }))
            })
            .collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

impl Thread {
    /// The bytes that every rank has put up.
    fn exchange(&self, own: Vec<u8>) -> Vec<Vec<u8>> {
        let posted = || self.shared.posted.lock().unwrap_or_else(PoisonError::into_inner);
        posted()[self.rank] = own;
        self.shared.barrier.wait();
        let all = posted().clone();
        self.shared.barrier.wait();
        all
    }

    fn floats(&self, own: &[f32]) -> Vec<Vec<f32>> {
        let bytes = own.iter().flat_map(|v| v.to_le_bytes()).collect();
        let all = self.exchange(bytes).into_iter();
        let read = |bytes: Vec<u8>| {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        all.map(read).collect()
    }
}

impl Group for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.posted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn library(&self) -> String {
        "threads".into()
    }

    fn barrier(&self) -> Result<()> {
        self.shared.barrier.wait();
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.exchange(bytes.to_vec())[root]);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        check_shares("all-gather", own.len(), all.len(), self.size())?;
        all.copy_from_slice(&self.exchange(own.to_vec()).concat());
        Ok(())
    }

    fn all_to_all_v(
        &self,
        (send, send_bytes): (&[u8], &[usize]),
        (receive, receive_bytes): (&mut [u8], &[usize]),
    ) -> Result<()> {
        let ranks = self.size();
        check_parts("all-to-all", send.len(), send_bytes, ranks)?;
        check_parts("all-to-all", receive.len(), receive_bytes, ranks)?;
        let lengths = send_bytes.iter().flat_map(|n| (*n as u64).to_le_bytes()).collect();
        let lengths = self.exchange(lengths);
        let sent = self.exchange(send.to_vec());
        let mut at = 0;
        for (source, bytes) in sent.iter().enumerate() {
            let length = |rank: usize| {
                let text = &lengths[source][8 * rank..8 * rank + 8];
                usize::try_from(u64::from_le_bytes(text.try_into().unwrap())).unwrap()
            };
            let from: usize = (0..self.rank).map(length).sum();
            let part = &bytes[from..from + length(self.rank)];
            assert_eq!(part.len(), receive_bytes[source], "what {source} sends is expected");
            receive[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let all = self.floats(values);
        values.fill(0.0);
        for other in all {
            values.iter_mut().zip(other).for_each(|(sum, v)| *sum += v);
        }
        Ok(())
    }

    fn reduce_scatter(&self, all: &[f32], own: &mut [f32]) -> Result<()> {
        check_shares("reduce-scatter", own.len(), all.len(), self.size())?;
        let mut sums = all.to_vec();
        self.all_reduce(&mut sums)?;
        own.copy_from_slice(&sums[self.rank * own.len()..][..own.len()]);
        Ok(())
    }

    fn max(&self, values: &mut [u64]) -> Result<()> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for other in self.exchange(bytes) {
            for (value, b) in values.iter_mut().zip(other.chunks_exact(8)) {
                *value = (*value).max(u64::from_le_bytes(b.try_into().unwrap()));
            }
        }
        Ok(())
    }
}

#[test]
fn the_operations_of_a_group_do_what_their_names_say() {
    for ranks in [1, 2, 4] {
        run(ranks, |group| {
            let (rank, word) = (group.rank(), u8::try_from(group.rank()).unwrap());
            let mut bytes = [word; 3];
            group.broadcast(ranks - 1, &mut bytes).unwrap();
            assert_eq!(usize::from(bytes[2]), ranks - 1);
            let mut all = vec![0; 2 * ranks];
            group.all_gather(&[word, 7], &mut all).unwrap();
            assert!((0..ranks).all(|r| usize::from(all[2 * r]) == r && all[2 * r + 1] == 7));
            // Rank r sends r + d bytes of value 10 r + d to d.
            let sends: Vec<usize> = (0..ranks).map(|d| rank + d).collect();
            let send: Vec<u8> = (0..ranks)
                .flat_map(|d| vec![u8::try_from(10 * rank + d).unwrap(); rank + d])
                .collect();
            let mut receive = vec![0; sends.iter().sum()];
            group.all_to_all_v((&send, &sends), (&mut receive, &sends)).unwrap();
            let expected: Vec<u8> = (0..ranks)
                .flat_map(|s| vec![u8::try_from(10 * s + rank).unwrap(); s + rank])
                .collect();
            assert_eq!(receive, expected);
            let mut sum = [1.0, rank as f32];
            group.all_reduce(&mut sum).unwrap();
            let whole = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(whole(&sum), whole(&[ranks as f32, (ranks * (ranks - 1) / 2) as f32]));
            let mut own = [0.0];
            let shares: Vec<f32> = (0..ranks).map(|r| r as f32).collect();
            group.reduce_scatter(&shares, &mut own).unwrap();
            assert_eq!(whole(&own), whole(&[(rank * ranks) as f32]));
            let mut most = [rank as u64, 5];
            group.max(&mut most).unwrap();
            assert_eq!(most, [ranks as u64 - 1, 5]);
            assert_eq!(super::texts(group, &format!("h{rank}")).unwrap().len(), ranks);
        });
    }
}
