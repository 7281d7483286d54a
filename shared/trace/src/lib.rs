//! The trace that a piece of work belongs to, from the request that asked for it to the bytes that it fetched.
//!
//! A [`TraceContext`] is what travels: in headers of HTTP and AMQP, and in rows. It is there whether or not anything is
//! exported, so that logs of all roles can be joined by trace id. A [`Span`] tells how long a part of the work took;
//! it costs next to nothing until the process exports what it records ([`install`]).
//!
//! What is *current* is kept by OpenTelemetry's own `Context`: a future that runs [in a span](Span::run), or [in the
//! trace](TraceContext::run) of a row, has it as the parent of whatever it begins.

mod context;
mod span;

pub use context::{TRACEPARENT, TRACESTATE, TraceContext};
pub use opentelemetry::trace::SpanKind;
pub use span::{Span, install, is_exporting, note, note_failure};
