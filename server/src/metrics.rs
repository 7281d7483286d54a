//! `/metrics` and `/livez` on a listener of their own, for monitoring systems.

use axum::{Router, http::header, response::IntoResponse, routing::get};
use pulp_runtime::config::Config;
use tokio_util::sync::CancellationToken;

use crate::roles::bind;

/// Serves the figures of this process until `stop` fires, if the configuration says where.
pub(crate) async fn serve(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    let Some(address) = config.metrics.listen else {
        return Ok(());
    };
    let listener = bind(address, "metrics.listen").await?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "figures are served");
    let router = Router::new()
        .route("/metrics", get(figures))
        .route("/livez", get(|| async { "ok\n" }));
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
        {
            tracing::error!(error = %e, "the figures are served no more");
        }
    });
    Ok(())
}

/// The text format of Prometheus.
async fn figures() -> impl IntoResponse {
    let text = prometheus::TextEncoder::new().encode_to_string(&prometheus::gather());
    text.map(|text| ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
        .map_err(|e| {
            tracing::error!(error = %e, "the figures can't be told");
            axum::http::StatusCode::INTERNAL_SERVER_ERROR
        })
}
