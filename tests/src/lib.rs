//! What crosses crates: end to end, engines, compatibility.
