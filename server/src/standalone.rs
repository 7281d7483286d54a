//! `pulp standalone`: every role in one process, with nothing else needed.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use pulp_api::{ApiState, FirstUser};
use pulp_runtime::{
    config::{Config, Sources},
    shutdown::{self, Drained, Shutdown},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{manage_db::ADMIN, metrics, roles, services::Services, sole::SoleUse, tokens};

/// Options of `pulp standalone`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where everything is kept [default: $HOME/.local/share/pulp]
    #[arg(long, env = "PULP_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the REST API listens [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    api: Option<SocketAddr>,
    /// Where Crane listens [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDR")]
    crane: Option<SocketAddr>,
    /// Configuration file (TOML) over the defaults of standalone
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Password of the user admin at the first start; generated and shown once if not given
    #[arg(
        long,
        env = "PULP_ADMIN_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    admin_password: Option<String>,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let data_dir = match options.data_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_data_dir()?,
    };
    let mut sources = Sources::new().standalone(&data_dir);
    if let Some(file) = &options.config {
        sources = sources.file(file)?;
    }
    let mut config = sources.environment(std::env::vars_os()).build()?;
    config.server.api_listen = options.api.unwrap_or(config.server.api_listen);
    config.server.crane_listen = options.crane.unwrap_or(config.server.crane_listen);
    pulp_runtime::telemetry::init(&config.log)?;
    pulp_runtime::export::start(&config.tracing, "pulp-standalone")?;

    let shutdown = Shutdown::new();
    shutdown.listen().context("can't listen for signals")?;
    let standalone = Standalone::start(config, options.admin_password, &shutdown).await?;
    standalone.welcome(&data_dir);
    shutdown::notify_ready();
    standalone.wait(&shutdown).await
}

fn default_data_dir() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set; give --data-dir")?;
    Ok(Path::new(&home).join(".local/share/pulp"))
}

/// All roles, running.
pub(crate) struct Standalone {
    /// Where the API listens.
    pub(crate) api: SocketAddr,
    /// Where Crane listens.
    pub(crate) crane: SocketAddr,
    /// What became of the first user.
    pub(crate) first_user: FirstUser,
    password_was_given: bool,
    services: Services,
    relay: tokio::task::JoinHandle<()>,
    relay_stop: CancellationToken,
    _data_dir: Option<SoleUse>,
}

impl Standalone {
    /// Migrates the database, makes the first user, binds the listeners and starts every role.
    pub(crate) async fn start(
        mut config: Config,
        admin_password: Option<String>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let api_listener = roles::bind(config.server.api_listen, "--api").await?;
        let crane_listener = roles::bind(config.server.crane_listen, "--crane").await?;
        let (api, crane) = (api_listener.local_addr()?, crane_listener.local_addr()?);
        if config.server.redirect_base.is_none() {
            // Crane serves these paths itself; there is nobody else.
            config.server.redirect_base = Some(Url::parse(&format!("http://{crane}/pulp/docker/"))?);
        }
        let data_dir = SoleUse::of(&config.storage.root)?;
        tokens::make_keys(&mut config)?;
        metrics::serve(&config, shutdown.soft().clone()).await?;
        let services = Services::open(config, "standalone").await?;
        let store = &services.database.store;
        store.migrate().await?;
        if data_dir.is_some() && services.config.database.url.is_none() {
            // The database lies in there.
            store.release_what_the_dead_held().await?;
        }
        let password_was_given = admin_password.is_some();
        let first_user = pulp_api::ensure_first_user(store, ADMIN, admin_password).await?;
        let published = services.published.clone();
        tokio::task::spawn_blocking(move || published.prepare()).await??;
        // One for both listeners: a password that one has checked the other knows.
        let state = roles::api_state(&services)?;

        let relay_stop = CancellationToken::new();
        let relay = tokio::spawn(pulp_relay::run(
            services.database.store.clone(),
            services.broker.clone(),
            services.config.tasks.relay_batch,
            relay_stop.clone(),
        ));
        start_roles(&services, state, api_listener, crane_listener, shutdown);
        Ok(Self {
            api,
            crane,
            first_user,
            password_was_given,
            services,
            relay,
            relay_stop,
            _data_dir: data_dir,
        })
    }

    /// Waits for the end: roles drain, the relay sends their last messages.
    pub(crate) async fn wait(self, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
        let timeout = self.services.config.tasks.drain_timeout + Duration::from_secs(5);
        let drained = shutdown.drain(timeout).await;
        self.relay_stop.cancel();
        self.relay.await.context("the relay failed")?;
        self.services.database.store.close().await;
        match drained {
            Drained::Clean | Drained::Forced => Ok(ExitCode::SUCCESS),
            Drained::Abandoned => anyhow::bail!("some work did not stop in time and was left"),
        }
    }

    fn welcome(&self, data_dir: &Path) {
        let (api, crane) = (self.api, self.crane);
        println!("pulp standalone is ready; ctrl-c ends it.");
        println!("  REST API  http://{api}/pulp/api/v2/");
        println!("  Crane     http://{crane}/v2/   (docker pull {crane}/<repo-registry-id>)");
        println!("  data      {}", data_dir.display());
        match &self.first_user {
            FirstUser::Existing => {}
            FirstUser::Created { .. } if self.password_was_given => {
                println!("  user      {ADMIN}, with the password given");
            }
            FirstUser::Created { password } => {
                println!("  user      {ADMIN}, password {password}   (shown this once; keep it)");
            }
        }
        println!("Next: export PULP_SERVER=http://{api}; pulp-admin login -u {ADMIN}; pulp-admin status");
    }
}

/// Each role's end ends all: half a server is worse than none.
fn start_roles(
    services: &Services,
    state: Arc<ApiState>,
    api: TcpListener,
    crane: TcpListener,
    shutdown: &Shutdown,
) {
    let role = |name: &'static str,
                run: std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>| {
        let shutdown = shutdown.clone();
        shutdown.clone().spawn(async move {
            if let Err(e) = run.await {
                tracing::error!(role = name, "ended: {e:#}");
            }
            shutdown.request();
        });
    };
    let soft = || shutdown.soft().clone();
    role("api", {
        let (state, stop) = (Arc::clone(&state), soft());
        Box::pin(async move { Ok(pulp_api::run(state, api, stop).await?) })
    });
    role("crane", {
        let (config, stop) = (roles::crane_config(&services.config), soft());
        // Clients that came to Crane get their tokens there: they need not reach the API.
        let tokens = pulp_crane::Beside {
            path: pulp_token::PATH,
            router: pulp_api::token_router(state),
        };
        Box::pin(async move { Ok(pulp_crane::run_beside(Some(tokens), config, crane, stop).await?) })
    });
    role("resource-manager", {
        let (services, stop) = (services.clone(), soft());
        Box::pin(async move {
            roles::resource_manager(&services, stop).await;
            Ok(())
        })
    });
    role("worker", {
        let (services, shutdown) = (services.clone(), shutdown.clone());
        Box::pin(async move { roles::worker(&services, &shutdown).await })
    });
    role("scheduler", {
        let (services, stop) = (services.clone(), soft());
        Box::pin(async move {
            roles::scheduler(&services, stop).await;
            Ok(())
        })
    });
}
