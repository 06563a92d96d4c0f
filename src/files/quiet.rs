//! Panics of libraries that are caught: an error of the file that they read, without their message on stderr.

use std::cell::Cell;
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with the messages of panics in this thread left out. Whether it panicked is for the caller,
/// who catches it within.
pub(crate) fn without_message<T>(work: impl FnOnce() -> T) -> T {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                usual(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let outcome = work();
    QUIET.set(before);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caught_panic_leaves_the_thread_as_it_was() {
        let caught = without_message(|| {
            std::panic::catch_unwind(|| {
                assert!(!QUIET.get(), "this message is not shown");
            })
        });
        assert!(caught.is_err() && !QUIET.get());
    }
}
