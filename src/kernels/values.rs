//! Values of weights, whole or as a part of what several layers share.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Values in their order: all of a stretch of memory, or some of it that others see too.
#[derive(Clone)]
pub struct Values<T> {
    all: Arc<Vec<T>>,
    range: Range<usize>,
}

impl<T> Values<T> {
    /// A part of these values, which are not copied; `None` where they end before it does.
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        let end = self.range.start.checked_add(range.end)?;
        (range.start <= range.end && end <= self.range.end).then(|| Self {
            all: Arc::clone(&self.all),
            range: self.range.start + range.start..end,
        })
    }
}

impl<T> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.all.get(self.range.clone()).unwrap_or_default()
    }
}

impl<T> From<Vec<T>> for Values<T> {
    fn from(values: Vec<T>) -> Self {
        let range = 0..values.len();
        Self { all: Arc::new(values), range }
    }
}

impl<T> FromIterator<T> for Values<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        values.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T: PartialEq> PartialEq for Values<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: fmt::Debug> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_same_memory_and_ends_with_the_whole() {
        let all: Values<u8> = (0..10).collect();
        let part = all.part(2..7).unwrap();
        assert_eq!(*part, [2, 3, 4, 5, 6]);
        assert_eq!(*part.part(1..3).unwrap(), [3, 4]);
        assert_eq!(part.as_ptr(), all[2..].as_ptr());
        assert!(part.part(4..6).is_none() && all.part(9..11).is_none());
        assert!(all.part(10..10).unwrap().is_empty());
    }
}
