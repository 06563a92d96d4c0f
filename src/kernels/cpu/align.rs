//! Grouping (token, slot) pairs by expert: a stable counting sort.
//!
//! One thread does it: 1.1 to 1.5 ns a pair are 37 us for 4,096 tokens of 8 experts each, whose layer takes
//! thousands of times as long.

use crate::Result;
use crate::kernels::Alignment;
use crate::kernels::reference::{bad_id, too_many_pairs};

/// Groups the pairs of `ids` by expert into `alignment`, reusing its buffers.
///
/// # Errors
/// [`crate::Error::Usage`] for an id that is not below `experts`, or more than 2^32 - 1 pairs.
pub fn align(ids: &[u32], experts: usize, alignment: &mut Alignment) -> Result<()> {
    let pairs = u32::try_from(ids.len()).map_err(|_| too_many_pairs())?;
    let Alignment { offsets, sorted_pairs, pair_rows } = alignment;
    // One slot more than needed: counts go to `expert + 2`, so that after the prefix sum
    // `offsets[expert + 1]` is the next free row of `expert` and ends as its last.
    offsets.clear();
    offsets.resize(experts + 2, 0);
    for (pair, &id) in ids.iter().enumerate() {
        match offsets.get_mut(id as usize + 2) {
            Some(count) => *count += 1,
            None => return Err(bad_id(pair, id, experts)),
        }
    }
    for i in 2..experts + 2 {
        offsets[i] += offsets[i - 1];
    }
    sorted_pairs.resize(ids.len(), 0);
    pair_rows.resize(ids.len(), 0);
    for (pair, &id) in (0..pairs).zip(ids) {
        let next = &mut offsets[id as usize + 1];
        sorted_pairs[*next] = pair;
        pair_rows[pair as usize] = u32::try_from(*next).map_err(|_| too_many_pairs())?;
        *next += 1;
    }
    offsets.truncate(experts + 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pairs_are_grouped_as_by_the_plain_loops(
            experts in 1usize..40,
            seed in prop::collection::vec(any::<u32>(), 0..300),
        ) {
            let ids: Vec<u32> =
                seed.iter().map(|s| s % u32::try_from(experts).unwrap()).collect();
            let mut fast = Alignment::default();
            align(&ids, experts, &mut fast).unwrap();
            prop_assert_eq!(fast, reference::align(&ids, experts).unwrap());
        }
    }

    #[test]
    fn an_id_outside_the_table_is_refused() {
        for id in [3, 4, 123_456_789, u32::MAX] {
            let error = align(&[0, id], 3, &mut Alignment::default()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }

    #[test]
    fn buffers_are_reused_for_smaller_inputs() {
        let mut alignment = Alignment::default();
        align(&[0, 1, 2, 1], 3, &mut alignment).unwrap();
        align(&[1], 2, &mut alignment).unwrap();
        assert_eq!(alignment, reference::align(&[1], 2).unwrap());
    }
}
