//! Spans: what was done, for how long, and how it went.

use std::{borrow::Cow, fmt::Display, sync::OnceLock, time::Duration, time::SystemTime};

use opentelemetry::{
    Context, KeyValue,
    context::FutureExt as _,
    global::BoxedTracer,
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _},
};

use crate::TraceContext;

static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

/// From now on spans are recorded, by this tracer. False if there was one already.
pub fn install(tracer: BoxedTracer) -> bool {
    TRACER.set(tracer).is_ok()
}

/// Whether spans are recorded at all in this process.
pub fn is_exporting() -> bool {
    TRACER.get().is_some()
}

/// A part of the work. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    context: Context,
    recording: bool,
}

impl Span {
    /// Begins one below what is [current](TraceContext::current); a trace of its own if nothing is.
    pub fn begin(name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        Self::below(TraceContext::current().as_ref(), name, kind)
    }

    /// Begins one below `parent`; a trace of its own without.
    pub fn below(parent: Option<&TraceContext>, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        Self::began(parent, name, kind, Duration::ZERO)
    }

    /// One that is known late: it began so long `ago`.
    pub fn began(
        parent: Option<&TraceContext>,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        ago: Duration,
    ) -> Self {
        let Some(tracer) = TRACER.get() else {
            let place = parent.cloned().unwrap_or_else(TraceContext::new_root);
            return Self {
                context: Context::new().with_remote_span_context(place.inner().clone()),
                recording: false,
            };
        };
        let above = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent.inner().clone()),
            None => Context::new(),
        };
        let mut builder = tracer.span_builder(name).with_kind(kind);
        if !ago.is_zero() {
            builder = builder.with_start_time(SystemTime::now() - ago);
        }
        let context = above.with_span(tracer.build_with_context(builder, &above));
        let recording = context.span().is_recording();
        Self { context, recording }
    }

    /// Its place in the trace, for what comes below it elsewhere.
    pub fn place(&self) -> TraceContext {
        TraceContext::of(self.context.span().span_context().clone())
    }

    /// Whether anybody will see it. If not, nothing need be prepared for [`set`](Self::set).
    pub const fn is_recording(&self) -> bool {
        self.recording
    }

    /// An attribute. Never a secret: collectors are other people's.
    pub fn set(&self, key: &'static str, value: &(impl Display + ?Sized)) {
        if self.recording {
            let value = value.to_string();
            self.context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// A number as an attribute.
    pub fn count(&self, key: &'static str, value: u64) {
        if self.recording {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            self.context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// It did not go well.
    pub fn fail(&self, why: &(impl Display + ?Sized)) {
        if self.recording {
            self.context.span().set_status(Status::error(why.to_string()));
        }
    }

    /// Runs a future within it: what that begins is below it. The span goes on until it is dropped.
    pub async fn run<F: Future>(&self, work: F) -> F::Output {
        work.with_context(self.context.clone()).await
    }

    /// Runs a future within it, and ends with it: badly, if that failed.
    pub async fn of<T, E: Display>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let done = self.run(work).await;
        if let Err(why) = &done {
            self.fail(why);
        }
        done
    }
}

/// Sets an attribute of the span that this code runs in, if anybody records it.
pub fn note(key: &'static str, value: &(impl Display + ?Sized)) {
    Context::map_current(|now| {
        let span = now.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key, value.to_string()));
        }
    });
}

/// The span that this code runs in does not go well.
pub fn note_failure(why: &(impl Display + ?Sized)) {
    Context::map_current(|now| {
        let span = now.span();
        if span.is_recording() {
            span.set_status(Status::error(why.to_string()));
        }
    });
}

impl Drop for Span {
    fn drop(&mut self) {
        // Clones of the context may outlive it; the span's end is this.
        if self.recording {
            self.context.span().end();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use opentelemetry::{
        SpanId,
        trace::{Status, TracerProvider as _},
    };
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

    use super::*;

    /// One test: what is recorded is of the process.
    #[tokio::test]
    async fn spans_are_nothing_before_a_tracer_is_there_and_tell_all_from_then_on() {
        assert!(!is_exporting());
        let silent = Span::begin("silent", SpanKind::Internal);
        assert!(!silent.is_recording() && !silent.place().is_sampled());
        let place = silent.place();
        let (below, within) = silent
            .run(async {
                let below = Span::begin("below", SpanKind::Internal).place();
                (below, TraceContext::current())
            })
            .await;
        assert_eq!((&below, within.as_ref()), (&place, Some(&place)));

        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        assert!(install(BoxedTracer::new(Box::new(provider.tracer("t")))));
        let caller =
            TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None).unwrap();
        let request = Span::below(Some(&caller), "request", SpanKind::Server);
        request
            .run(async {
                let late = Span::began(
                    TraceContext::current().as_ref(),
                    "late",
                    SpanKind::Internal,
                    Duration::from_secs(5),
                );
                late.count("bytes", 7);
                note("user", "ann");
                let failing = Span::begin("failing", SpanKind::Client);
                let failed: Result<(), &str> = failing.of(async { Err("no way") }).await;
                assert_eq!(failed, Err("no way"));
            })
            .await;
        request.set("path", "/x");
        let sent = request.place();
        drop(request);
        assert_eq!(sent.trace_id(), caller.trace_id());

        let spans = exporter.get_finished_spans().unwrap();
        let named = |name: &str| spans.iter().find(|s| s.name == name).unwrap();
        let id = |name: &str| named(name).span_context.span_id();
        assert_eq!(spans.len(), 3);
        assert_eq!(
            named("request").parent_span_id,
            SpanId::from(0xb7ad_6b71_6920_3331)
        );
        assert_eq!(named("late").parent_span_id, id("request"));
        assert_eq!(named("failing").parent_span_id, id("request"));
        assert_eq!(named("failing").status, Status::error("no way"));
        let noted = KeyValue::new("user", "ann");
        assert!(
            named("request").attributes.contains(&noted),
            "{:?}",
            named("request")
        );
        let late = named("late");
        assert!(late.end_time.duration_since(late.start_time).unwrap() >= Duration::from_secs(5));
        assert_eq!(late.attributes, [KeyValue::new("bytes", 7_i64)]);

        let unsampled =
            TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", None).unwrap();
        let quiet = Span::below(Some(&unsampled), "quiet", SpanKind::Server);
        assert!(!quiet.is_recording(), "the caller has decided");
    }
}
