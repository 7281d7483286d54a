//! What travels: W3C Trace Context, <https://www.w3.org/TR/trace-context/>.

use std::fmt;

use http::HeaderMap;
use opentelemetry::{
    Context, SpanId, TraceFlags, TraceId,
    context::FutureExt as _,
    trace::{SpanContext, TraceContextExt as _, TraceState},
};

/// The header, or AMQP header, of [`TraceContext::traceparent`].
pub const TRACEPARENT: &str = "traceparent";
/// The header, or AMQP header, of [`TraceContext::tracestate`].
pub const TRACESTATE: &str = "tracestate";

/// Of a tracestate that is longer, nothing is taken: it is a stranger's, and kept in each row. The specification asks
/// for 512 at least.
const LONGEST_STATE: usize = 512;

/// A place in a trace: the trace's id, and the span that is the parent of what comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext(SpanContext);

impl TraceContext {
    /// A trace of its own, of which nothing is recorded before a span of it says so.
    pub fn new_root() -> Self {
        let id = |trace: u128, span: u64| {
            // All zeros is no id.
            (TraceId::from(trace.max(1)), SpanId::from(span.max(1)))
        };
        let (trace_id, span_id) = id(rand::random(), rand::random());
        Self(SpanContext::new(
            trace_id,
            span_id,
            TraceFlags::default(),
            true,
            TraceState::default(),
        ))
    }

    /// Reads the two headers. None if the first is not valid: then the specification wants a new trace. A state that
    /// is not valid is left out.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let (trace_id, span_id, flags) = read(traceparent.trim())?;
        let state = tracestate
            .filter(|s| s.len() <= LONGEST_STATE && s.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t')))
            .and_then(|s| s.parse().ok())
            .unwrap_or_default();
        Some(Self(SpanContext::new(trace_id, span_id, flags, true, state)))
    }

    /// What the sender of a request says.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next()?.to_str().ok()?;
        if parents.next().is_some() {
            return None;
        }
        let states: Vec<&str> = headers
            .get_all(TRACESTATE)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .collect();
        Self::parse(parent, Some(&states.join(",")))
    }

    /// What was kept in a row. Rows are our own: what can't be read is nothing worth a word.
    pub fn from_row(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        Self::parse(traceparent?, tracestate)
    }

    /// Where the code that calls this is, if it is anywhere.
    pub fn current() -> Option<Self> {
        Context::map_current(|now| {
            let context = now.span().span_context().clone();
            context.is_valid().then_some(Self(context))
        })
    }

    /// The header `traceparent`: `00-<trace id>-<span id>-<flags>`.
    pub fn traceparent(&self) -> String {
        let flags = self.0.trace_flags() & TraceFlags::SAMPLED;
        format!("00-{}-{}-{flags:02x}", self.0.trace_id(), self.0.span_id())
    }

    /// The header `tracestate`, unless there is nothing to say.
    pub fn tracestate(&self) -> Option<String> {
        Some(self.0.trace_state().header()).filter(|s| !s.is_empty())
    }

    /// The trace's id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> TraceIdText {
        TraceIdText(self.0.trace_id())
    }

    /// Whether somebody records this trace.
    pub fn is_sampled(&self) -> bool {
        self.0.is_sampled()
    }

    /// Runs a future in this place of the trace, without a span of its own.
    pub async fn run<F: Future>(&self, work: F) -> F::Output {
        let context = Context::new().with_remote_span_context(self.0.clone());
        work.with_context(context).await
    }

    pub(crate) const fn inner(&self) -> &SpanContext {
        &self.0
    }

    pub(crate) const fn of(context: SpanContext) -> Self {
        Self(context)
    }
}

/// A trace's id, to be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceIdText(TraceId);

impl fmt::Display for TraceIdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// `version-traceid-parentid-flags`, lower case. A later version may have more behind it.
fn read(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut parts = text.splitn(5, '-');
    let version = hex(parts.next()?, 2)?;
    let trace_id = hex(parts.next()?, 32)?;
    let span_id = hex(parts.next()?, 16)?;
    let flags = hex(parts.next()?, 2)?;
    let more = parts.next();
    if version == 0xff || (version == 0 && more.is_some()) || trace_id == 0 || span_id == 0 {
        return None;
    }
    let flags = TraceFlags::new(u8::try_from(flags).ok()?) & TraceFlags::SAMPLED;
    Some((
        TraceId::from(trace_id),
        SpanId::from(u64::try_from(span_id).ok()?),
        flags,
    ))
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != digits || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_the_specification_shows_is_read_and_written() {
        let context = TraceContext::parse(PARENT, Some("congo=t61rcWkgMzE, rojo=00f067aa0ba902b7")).unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(context.is_sampled());
        assert_eq!(context.traceparent(), PARENT);
        assert_eq!(
            context.tracestate().unwrap(),
            "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
        );
    }

    #[test]
    fn what_is_not_valid_is_nobodys_and_a_later_version_is_read_as_far_as_it_is_known() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad, None), None, "{bad}");
        }
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-05-what-the-future-brings";
        assert_eq!(TraceContext::parse(later, None).unwrap().traceparent(), PARENT);
    }

    #[test]
    fn a_state_that_is_not_valid_or_too_long_costs_the_state_only() {
        for bad in [
            "no member".to_owned(),
            "A=b".to_owned(),
            format!("a={}", "x".repeat(600)),
        ] {
            let context = TraceContext::parse(PARENT, Some(&bad)).unwrap();
            assert_eq!(context.tracestate(), None, "{bad}");
        }
    }

    #[test]
    fn of_two_parents_none_is_believed() {
        let mut headers = HeaderMap::new();
        assert_eq!(TraceContext::from_headers(&headers), None);
        headers.append(TRACEPARENT, PARENT.parse().unwrap());
        headers.append(TRACESTATE, "a=1".parse().unwrap());
        headers.append(TRACESTATE, "b=2".parse().unwrap());
        let context = TraceContext::from_headers(&headers).unwrap();
        assert_eq!(context.tracestate().unwrap(), "a=1,b=2");
        headers.append(TRACEPARENT, PARENT.parse().unwrap());
        assert_eq!(TraceContext::from_headers(&headers), None);
    }

    #[tokio::test]
    async fn a_future_knows_the_trace_that_it_runs_in() {
        assert_eq!(TraceContext::current(), None);
        let (a, b) = (TraceContext::new_root(), TraceContext::new_root());
        assert_ne!(a.trace_id(), b.trace_id());
        let seen = a
            .run(async {
                tokio::task::yield_now().await;
                let inner = b.run(async { TraceContext::current() }).await;
                (TraceContext::current(), inner)
            })
            .await;
        assert_eq!(seen, (Some(a), Some(b)));
        assert_eq!(TraceContext::current(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_the_same(trace in 1..=u128::MAX, span in 1..=u64::MAX, sampled: bool) {
            let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
            let context = SpanContext::new(trace.into(), span.into(), flags, true, TraceState::default());
            let context = TraceContext(context);
            prop_assert_eq!(TraceContext::parse(&context.traceparent(), None).unwrap(), context);
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,80}", state in ".{0,80}") {
            let _ = TraceContext::parse(&text, Some(&state));
        }
    }
}
