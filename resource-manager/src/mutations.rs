//! Faults that a test can put into this crate, to see that the simulation finds them. Never built into a release.

use std::cell::Cell;

thread_local! {
    static OVERTAKING: Cell<bool> = const { Cell::new(false) };
}

/// On this thread, lock tables let a task pass others that came before it, as long as nobody holds its resources.
pub fn set_overtaking(on: bool) {
    OVERTAKING.set(on);
}

pub(crate) fn overtaking() -> bool {
    OVERTAKING.get()
}
