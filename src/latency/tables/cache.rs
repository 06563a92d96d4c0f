//! Answers to "which series does this key use", found once per key.
//!
//! Slots are filled once and never change, so that threads share nothing but memory.

use std::sync::OnceLock;

/// A key of whole numbers.
pub(super) type Key<const N: usize> = [u32; N];

/// Slots tried before a key goes uncached.
const PROBES: usize = 16;

/// A value with its key.
type Slot<const N: usize, V> = OnceLock<Box<(Key<N>, V)>>;

/// A fixed number of slots for values by key.
#[derive(Debug)]
pub(super) struct Cache<const N: usize, V> {
    slots: Box<[Slot<N, V>]>,
}

impl<const N: usize, V> Cache<N, V> {
    /// A cache of `1 << bits` keys.
    pub(super) fn new(bits: u32) -> Self {
        Self { slots: (0..1usize << bits).map(|_| OnceLock::new()).collect() }
    }

    /// Reads the value of a key, which `make` finds when it is asked for the first time.
    pub(super) fn with<R>(
        &self,
        key: Key<N>,
        make: impl Fn() -> V,
        read: impl FnOnce(&V) -> R,
    ) -> R {
        let start = hash(&key);
        for probe in 0..PROBES {
            let slot = &self.slots[(start + probe) & (self.slots.len() - 1)];
            let found = match slot.get() {
                Some(found) => found,
                None => slot.get_or_init(|| Box::new((key, make()))),
            };
            // Another thread may have taken the slot for another key in between.
            if found.0 == key {
                return read(&found.1);
            }
        }
        read(&make())
    }
}

/// A multiplicative hash of some words (the constant is 2^64 over the golden ratio).
fn hash(words: &[u32]) -> usize {
    let mixed = words.iter().fold(0u64, |hash, word| {
        (hash.rotate_left(5) ^ u64::from(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (mixed >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_value_is_made_once_per_key_and_a_full_cache_still_answers() {
        let cache: Cache<1, u32> = Cache::new(4);
        let made = Cell::new(0);
        for _ in 0..2 {
            for key in 0..64 {
                let make = || {
                    made.set(made.get() + 1);
                    key * 3
                };
                assert_eq!(cache.with([key], make, |v| *v), key * 3);
            }
        }
        assert_eq!(made.get(), 16 + 2 * 48);
    }
}
