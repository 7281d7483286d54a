//! `pulp demo`: the documentation's tutorial on a standalone server in a temporary folder.
//!
//! Every step is the command a person would type, run by the same code, so that what is shown is what happens.

mod image;
mod pull;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use pulp_admin::{Exit, Io};
use pulp_api::FirstUser;
use pulp_runtime::{config::Sources, shutdown::Shutdown};

use crate::{manage_db::ADMIN, standalone::Standalone};

/// The repository of the tutorial.
const REPOSITORY: &str = "hello";
/// The name by which clients pull it.
const REGISTRY_ID: &str = "pulpdemo/hello";

/// Options of `pulp demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A saved image (docker save, podman save, skopeo copy) to use instead of one made here
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir().context("can't make a temporary folder")?;
    // Ports that are free, no interference from a configured environment; warnings only, the commands are the show.
    let mut config = Sources::new().standalone(&folder.path().join("data")).build()?;
    config.server.api_listen = ([127, 0, 0, 1], 0).into();
    config.server.crane_listen = ([127, 0, 0, 1], 0).into();
    "warn".clone_into(&mut config.log.level);
    pulp_runtime::telemetry::init(&config.log)?;
    let shutdown = Shutdown::new();
    shutdown.listen().context("can't listen for signals")?;
    println!(
        "A whole server, in one process, in {}:\n",
        folder.path().display()
    );
    println!(
        "$ pulp standalone --data-dir {}",
        folder.path().join("data").display()
    );
    let standalone = Standalone::start(config, None, &shutdown).await?;

    let result = tutorial(&options, &standalone, folder.path()).await;
    shutdown.request();
    standalone.wait(&shutdown).await?;
    match result? {
        0 => println!(
            "\nThe image has no v2 side (the note at its upload says why), so today's clients have nothing to pull; \
             it is published for v1 clients."
        ),
        _ => println!(
            "\nThat was the main job: a saved image went in, a pull brought it out, every digest checked."
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the number of tags that were pulled.
async fn tutorial(options: &Options, server: &Standalone, folder: &Path) -> anyhow::Result<usize> {
    let image = if let Some(file) = &options.image {
        std::path::absolute(file)?
    } else {
        let file = folder.join("hello.tar");
        image::write(&file).with_context(|| format!("can't write {}", file.display()))?;
        println!(
            "An image was made and saved, as `docker save` would: {}",
            file.display()
        );
        file
    };
    let FirstUser::Created { password } = &server.first_user else {
        bail!("the temporary folder was not empty")
    };
    let io = Io::process()
        .with_env("HOME", folder.to_string_lossy())
        .with_env("PULP_SERVER", format!("http://{}", server.api))
        .with_env("PULP_USERNAME", ADMIN)
        .with_env("PULP_PASSWORD", password);
    println!(
        "$ export PULP_SERVER=http://{} PULP_USERNAME={ADMIN} PULP_PASSWORD={password}",
        server.api
    );

    let image = image.to_string_lossy().into_owned();
    let id = format!("--repo-id={REPOSITORY}");
    let export = folder.join("hello-export.tar").to_string_lossy().into_owned();
    admin(
        &io,
        &[
            "docker",
            "repo",
            "create",
            &id,
            &format!("--repo-registry-id={REGISTRY_ID}"),
        ],
    )
    .await?;
    admin(&io, &["docker", "repo", "uploads", "upload", &id, "-f", &image]).await?;
    admin(&io, &["docker", "repo", "list"]).await?;
    admin(&io, &["docker", "repo", "search", "tag", &id]).await?;
    admin(&io, &["docker", "repo", "publish", "run", &id]).await?;
    admin(
        &io,
        &[
            "docker",
            "repo",
            "export",
            "run",
            &id,
            &format!("--export-file={export}"),
        ],
    )
    .await?;
    pull::every_tag(server.crane, REGISTRY_ID, folder).await
}

/// Shows a pulp-admin command and runs it.
async fn admin(io: &Io, words: &[&str]) -> anyhow::Result<()> {
    println!("\n$ pulp-admin {}", words.join(" "));
    let line = std::iter::once("pulp-admin").chain(words.iter().copied());
    match pulp_admin::run(line, io).await {
        Exit::Success => Ok(()),
        exit => bail!("`pulp-admin {}` failed: {exit:?}", words.join(" ")),
    }
}
