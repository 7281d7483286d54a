//! Sending spans to an OpenTelemetry collector: OTLP over HTTP, protobuf.
//!
//! Spans are put into a bounded queue, without waiting; a thread of its own sends them in batches. If the collector is
//! away, they are lost, and nothing else happens: neither work nor the end of the process waits for it, but for
//! [`end`]'s bounded last try.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::{Key, global::BoxedTracer, trace::TracerProvider as _};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tokio::runtime::Handle;

use crate::config::TracingConfig;

/// How long the end of a process waits for its last spans to be sent.
const LAST_TRY: Duration = Duration::from_secs(2);

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Why spans can't be exported.
#[derive(Debug, thiserror::Error)]
#[error("spans can't be exported: {0}; check [tracing] and the variables OTEL_*")]
pub struct ExportError(String);

/// Records spans from now on and sends them, if the configuration or OpenTelemetry's own variables say where. True if
/// so. `service` is this process's name there unless `OTEL_SERVICE_NAME` says another. Call it within the runtime.
pub fn start(config: &TracingConfig, service: &'static str) -> Result<bool, ExportError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    if !is_wanted(config, variable) {
        return Ok(false);
    }
    let timeout = config.timeout;
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_timeout(timeout)
        .with_http_client(Http::new(timeout)?);
    if let Some(endpoint) = &config.endpoint {
        exporter = exporter.with_endpoint(traces_url(endpoint.as_str()));
    }
    if let Some(headers) = &config.headers {
        let headers = headers_of(headers.expose())?;
        exporter = exporter.with_headers(headers);
    }
    let exporter = exporter.build().map_err(|e| ExportError(e.to_string()))?;
    let mut provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource(service));
    if variable("OTEL_TRACES_SAMPLER").is_none() {
        let ratio = Sampler::TraceIdRatioBased(config.sample_ratio);
        provider = provider.with_sampler(Sampler::ParentBased(Box::new(ratio)));
    }
    let provider = provider.build();
    let tracer = BoxedTracer::new(Box::new(provider.tracer("pulp")));
    if PROVIDER.set(provider).is_err() || !pulp_trace::install(tracer) {
        return Err(ExportError("it was begun already in this process".to_owned()));
    }
    Ok(true)
}

/// Sends what is left, for two seconds at most.
pub async fn end() {
    let Some(provider) = PROVIDER.get() else {
        return;
    };
    let last = tokio::task::spawn_blocking(|| provider.shutdown_with_timeout(LAST_TRY));
    let sent = tokio::time::timeout(LAST_TRY + Duration::from_millis(500), last).await;
    if !matches!(sent, Ok(Ok(Ok(())))) {
        tracing::debug!("the last spans were not sent");
    }
}

fn is_wanted(config: &TracingConfig, variable: impl Fn(&str) -> Option<String>) -> bool {
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|v| v.trim().eq_ignore_ascii_case("true"));
    let elsewhere = [
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ];
    !disabled && (config.endpoint.is_some() || elsewhere.into_iter().any(|name| variable(name).is_some()))
}

fn traces_url(base: &str) -> String {
    let base = base.trim_end_matches('/');
    if base.ends_with("/v1/traces") {
        base.to_owned()
    } else {
        format!("{base}/v1/traces")
    }
}

/// Reads `name=value,name=value`, values percent-encoded. None if it is nothing of the kind.
pub(crate) fn headers(text: &str) -> Option<HashMap<String, String>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value = percent_encoding::percent_decode_str(value.trim())
                .decode_utf8()
                .ok()?;
            http::HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            http::HeaderValue::from_str(&value).ok()?;
            Some((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}

fn headers_of(text: &str) -> Result<HashMap<String, String>, ExportError> {
    headers(text).ok_or_else(|| ExportError("tracing.headers is not name=value,name=value".to_owned()))
}

/// What the variables say of this process, and its name if they don't.
fn resource(service: &'static str) -> Resource {
    let builder = || Resource::builder();
    let given = builder().build();
    let name = given.get(&Key::from_static_str("service.name"));
    let named = name.is_some_and(|n| !n.as_str().starts_with("unknown_service"));
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let described = builder().with_attribute(version);
    if named {
        described.build()
    } else {
        described.with_service_name(service).build()
    }
}

/// The client that everything else uses, on this process's runtime, though the exporter has a thread without one.
struct Http {
    client: reqwest::Client,
    runtime: Handle,
    failing: AtomicBool,
}

impl Http {
    fn new(timeout: Duration) -> Result<Self, ExportError> {
        let client = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| ExportError(e.to_string()))?;
        let runtime = Handle::try_current().map_err(|e| ExportError(e.to_string()))?;
        Ok(Self {
            client,
            runtime,
            failing: AtomicBool::new(false),
        })
    }

    /// Says so when it begins and when it ends, not in between.
    fn note(&self, fault: Option<&str>) {
        let was = self.failing.swap(fault.is_some(), Ordering::Relaxed);
        match fault {
            Some(why) if !was => tracing::warn!("spans are lost: the collector can't be reached: {why}"),
            None if was => tracing::info!("the collector takes spans again"),
            _ => {}
        }
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let request: reqwest::Request = request.try_into()?;
            let came = client.execute(request).await?;
            let status = came.status();
            // A receiver says little, and nothing of it is needed.
            let mut response = http::Response::new(came.bytes().await?);
            *response.status_mut() = status;
            Ok::<_, HttpError>(response)
        });
        // Fails when the runtime ends.
        let answer = sent.await?;
        match &answer {
            Ok(response) if response.status().is_success() => self.note(None),
            Ok(response) => self.note(Some(&format!("it answered {}", response.status()))),
            Err(e) => self.note(Some(&e.to_string())),
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nothing_is_exported_unless_somebody_says_where() {
        let off = TracingConfig::default();
        let on = TracingConfig {
            endpoint: Some("http://c:4318".parse().unwrap()),
            ..TracingConfig::default()
        };
        let set = |name: &'static str, value: &'static str| {
            move |asked: &str| (asked == name).then(|| value.to_owned())
        };
        let none = |_: &str| None;
        assert!(!is_wanted(&off, none));
        assert!(is_wanted(&on, none));
        assert!(is_wanted(
            &off,
            set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
        ));
        assert!(is_wanted(
            &off,
            set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/t")
        ));
        assert!(!is_wanted(&on, set("OTEL_SDK_DISABLED", "true")));
    }

    #[test]
    fn the_path_of_traces_is_appended_once() {
        for (base, url) in [
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("http://c:4318/otlp", "http://c:4318/otlp/v1/traces"),
            ("http://c/v1/traces", "http://c/v1/traces"),
        ] {
            assert_eq!(traces_url(base), url);
        }
    }

    #[test]
    fn headers_are_pairs_and_may_be_encoded() {
        let found = headers("authorization=Bearer%20x%3D%3D, tenant=a").unwrap();
        assert_eq!(found["authorization"], "Bearer x==");
        assert_eq!(found["tenant"], "a");
        assert!(headers("").unwrap().is_empty());
        for bad in ["novalue", "a b=c", "a=%00"] {
            assert!(headers(bad).is_none(), "{bad}");
        }
    }
}
