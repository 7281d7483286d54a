//! One role in one process.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use pulp_api::{ApiConfig, ApiState};
use pulp_crane::{CraneConfig, Mode};
use pulp_model::{deadline::HardLimits, task::TaskClass};
use pulp_runtime::{
    config::{Config, CraneMode},
    shutdown::{self, Drained, Shutdown},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{metrics, plugins, services::Services, tokens};

/// What a process may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Api,
    ResourceManager,
    Worker,
    Scheduler,
    Crane,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::ResourceManager => "resource-manager",
            Self::Worker => "worker",
            Self::Scheduler => "scheduler",
            Self::Crane => "crane",
        }
    }

    /// The name among the services of a tracing system.
    pub(crate) const fn service(self) -> &'static str {
        match self {
            Self::Api => "pulp-api",
            Self::ResourceManager => "pulp-resource-manager",
            Self::Worker => "pulp-worker",
            Self::Scheduler => "pulp-scheduler",
            Self::Crane => "pulp-crane",
        }
    }
}

/// Runs Crane with the settings of its own file, if there are such, else with those of `config`.
pub(crate) async fn run_crane(config: Config, crane: Option<CraneConfig>) -> anyhow::Result<ExitCode> {
    let crane = match crane {
        Some(crane) => crane,
        None => crane_config(&config).with_environment(std::env::vars_os())?,
    };
    run_any(Role::Crane, config, crane).await
}

/// Runs a role until it is told to end.
pub(crate) async fn run(role: Role, config: Config) -> anyhow::Result<ExitCode> {
    let crane = crane_config(&config);
    run_any(role, config, crane).await
}

async fn run_any(role: Role, config: Config, crane: CraneConfig) -> anyhow::Result<ExitCode> {
    let shutdown = Shutdown::new();
    shutdown.listen().context("can't listen for signals")?;
    let drain_timeout = config.tasks.drain_timeout + std::time::Duration::from_secs(5);
    let ending = shutdown.clone();
    let work = shutdown.spawn(async move {
        let result = serve(role, config, crane, &ending).await;
        // A role that ends by itself ends the process.
        ending.request();
        result
    });
    let drained = shutdown.drain(drain_timeout).await;
    if drained == Drained::Abandoned {
        anyhow::bail!("some work did not stop in time and was left");
    }
    work.await.context("the role failed")??;
    Ok(ExitCode::SUCCESS)
}

async fn serve(role: Role, config: Config, crane: CraneConfig, shutdown: &Shutdown) -> anyhow::Result<()> {
    metrics::serve(&config, shutdown.soft().clone()).await?;
    if role == Role::Crane {
        let listener = bind(
            crane.listen,
            "server.crane_listen, or [general] listen of crane.conf",
        )
        .await?;
        shutdown::notify_ready();
        return Ok(pulp_crane::run(crane, listener, shutdown.soft().clone()).await?);
    }
    if config.broker.url.scheme() == "memory" {
        anyhow::bail!(
            "broker.url is memory:, which other processes can't reach; \
             set it to amqp://user:password@host/vhost, or run everything in one process with `pulp standalone`"
        );
    }
    let services = Services::open(config, role.name()).await?;
    services.wait_for_schema(shutdown.soft()).await?;
    let relay_stop = CancellationToken::new();
    let relay = tokio::spawn(pulp_relay::run(
        services.database.store.clone(),
        services.broker.clone(),
        services.config.tasks.relay_batch,
        relay_stop.clone(),
    ));
    let result = match role {
        Role::Api => {
            let listener = bind(services.config.server.api_listen, "server.api_listen").await?;
            shutdown::notify_ready();
            let state = api_state(&services)?;
            let served = pulp_api::run(state, listener, shutdown.soft().clone()).await;
            served.map_err(Into::into)
        }
        Role::ResourceManager => {
            shutdown::notify_ready();
            resource_manager(&services, shutdown.soft().clone()).await;
            Ok(())
        }
        Role::Worker => {
            shutdown::notify_ready();
            worker(&services, shutdown).await
        }
        Role::Scheduler => {
            shutdown::notify_ready();
            scheduler(&services, shutdown.soft().clone()).await;
            Ok(())
        }
        Role::Crane => Ok(()),
    };
    // After the role: its last commits may have left messages.
    relay_stop.cancel();
    relay.await.context("the relay failed")?;
    services.broker.close().await;
    services.database.store.close().await;
    result
}

/// Listens, or says which setting to change.
pub(crate) async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}; is the port in use? It is set by {key}"))
}

/// What the API works with.
pub(crate) fn api_state(services: &Services) -> anyhow::Result<Arc<ApiState>> {
    let config = &services.config;
    let api = ApiConfig {
        server_name: config.server.server_name.clone(),
        uploads_dir: config.storage.uploads_dir(),
        session_lifetime: config.server.session_lifetime,
        max_chunk: config.server.max_chunk_bytes as usize,
        plugin_defaults: plugins::defaults(&config.server.plugins_dir)?,
        token_signer: tokens::signer(config)?,
    };
    let store = services.database.store.clone();
    Ok(Arc::new(ApiState::new(store, Some(services.broker.clone()), api)))
}

pub(crate) async fn resource_manager(services: &Services, stop: CancellationToken) {
    let tasks = &services.config.tasks;
    let settings = pulp_resource_manager::Settings {
        lease_ttl: tasks.lease_ttl,
        sweep: tasks.sweep,
        grant_batch: tasks.grant_batch as usize,
        max_attempts: i64::from(tasks.max_attempts),
        // The worker has the same grace; then it is given time to say so itself.
        cancel_grace: tasks.hard_margin(),
        limits: HardLimits {
            deadlines: tasks.deadlines(),
            without_progress: tasks.end_stalled_after.map(|after| after + tasks.hard_margin()),
        },
        stalled_after: tasks.stalled_after,
        resend_after: tasks.sweep * 2,
        owner_weights: Arc::new(tasks.owner_weights.clone()),
    };
    pulp_resource_manager::run(settings, services.database.clone(), services.broker.clone(), stop).await;
}

pub(crate) async fn worker(services: &Services, shutdown: &Shutdown) -> anyhow::Result<()> {
    let config = &services.config;
    let slots = &config.tasks.slots;
    let slots = BTreeMap::from([
        (TaskClass::Interactive, slots.interactive as usize),
        (TaskClass::Import, slots.import as usize),
        (TaskClass::Publish, slots.publish as usize),
        (TaskClass::Sync, slots.sync as usize),
        (TaskClass::Maintenance, slots.maintenance as usize),
    ]);
    let settings = pulp_worker::Settings {
        slots,
        lease_ttl: config.tasks.worker_ttl,
        cancel_grace: config.tasks.cancel_grace,
        deadlines: config.tasks.deadlines(),
        stalled_after: config.tasks.stalled_after,
        end_stalled_after: config.tasks.end_stalled_after,
        drain_timeout: config.tasks.drain_timeout,
        uploads_dir: config.storage.uploads_dir(),
        working_dir: config.storage.working_dir(),
        redirect_base: config.redirect_base(),
        plugin_defaults: plugins::defaults(&config.server.plugins_dir)?,
        max_expanded_bytes: config.tasks.max_expanded_bytes,
        downloads_per_host: config.sync.downloads_per_host(),
        transfer: pulp_worker::TransferSettings {
            import_dir: config.import_dir(),
            signing_key: config.export_signing_key(),
            signing_key_password_file: config.transfer.signing_key_password_file.clone(),
            trusted_keys_dir: config.trusted_keys_dir(),
            require_signature: config.transfer.require_signature,
        },
    };
    let resources = pulp_worker::Resources {
        database: services.database.clone(),
        broker: services.broker.clone(),
        content: services.content.clone(),
        published: services.published.clone(),
    };
    Ok(pulp_worker::run(settings, resources, shutdown).await?)
}

pub(crate) async fn scheduler(services: &Services, stop: CancellationToken) {
    let settings = pulp_scheduler::Settings {
        keep_ended_tasks: services.config.tasks.keep_ended_tasks,
        ..pulp_scheduler::Settings::default()
    };
    pulp_scheduler::run(
        settings,
        services.database.store.clone(),
        services.content.clone(),
        stop,
    )
    .await;
}

pub(crate) fn crane_config(config: &Config) -> CraneConfig {
    CraneConfig {
        listen: config.server.crane_listen,
        data_dir: config.crane_data_dir(),
        polling_interval: config.crane.polling_interval,
        mode: match config.crane.mode {
            CraneMode::Serve => Mode::SERVE,
            CraneMode::Redirect => Mode::Redirect,
        },
        endpoint: config.crane.endpoint.clone(),
        tokens: tokens::service(config),
        ..CraneConfig::default()
    }
}
