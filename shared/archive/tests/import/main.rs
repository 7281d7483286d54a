//! Archives of every layout, good and bad, made here member by member.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixtures;
mod layouts;
mod lists;
mod masks;
mod rejections;
mod support;
