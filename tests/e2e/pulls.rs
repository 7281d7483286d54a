//! Pulls that go on: with everything else down, and while what is pulled is published anew without a pause.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_testkit::{Dockerd, Postgres, RabbitMq, skopeo};
use pulp_tests::{Cluster, ClusterOptions, Server, Standalone, images::docker_archive, saved, wait_for};
use pulp_token::Signer;
use serde_json::{Value, json};

use crate::clients::unless_root_is_needed;

/// Between two publishes.
const PERIOD: Duration = Duration::from_millis(100);

/// A repository with one image, published under `pulls/<repo>`; gives the image's id.
fn publish(server: &impl Server, repo: &str, protected: bool, layers: usize) -> Result<Digest> {
    let tar = docker_archive("app:latest", layers, 200_000)?.tar;
    let (id, name) = (
        format!("--repo-id={repo}"),
        format!("--repo-registry-id=pulls/{repo}"),
    );
    let protected = format!("--protected={protected}");
    server.admin(&["docker", "repo", "create", &id, &name, &protected])?;
    let upload = server.upload(&tar)?;
    server.wait_until_finished(&server.import(repo, &upload, json!({}))?)?;
    server.admin(&["docker", "repo", "publish", "run", &id])?;
    Ok(saved::contents(&tar)?.image_id)
}

/// Counts what went well, keeps what didn't.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    done: AtomicUsize,
    errors: Mutex<Vec<String>>,
}

impl Load {
    /// Does it again and again until told to stop.
    fn run(&self, mut once: impl FnMut() -> Result<()>) {
        while !self.stop.load(Ordering::Relaxed) {
            match once() {
                Ok(()) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => self.errors.lock().unwrap().push(format!("{error:#}")),
            }
        }
    }

    /// Waits for so many more.
    fn wait_for_more(&self, what: &str, more: usize) -> Result<()> {
        let before = self.done.load(Ordering::Relaxed);
        wait_for(what, || {
            let errors = self.errors.lock().unwrap();
            ensure!(errors.is_empty(), "{what}: {errors:?}");
            Ok((self.done.load(Ordering::Relaxed) >= before + more).then_some(()))
        })
    }
}

/// One docker pull that fetches everything; gives the image's id.
fn pull_by_docker(docker: &Dockerd, image: &str) -> Result<String> {
    docker.docker(&["pull", "--quiet", image])?;
    let inspected: Value = serde_json::from_str(&docker.docker(&["image", "inspect", image])?)?;
    let id = inspected[0]["Id"].as_str().context("no Id")?.to_owned();
    docker.docker(&["image", "rm", "--force", &id])?;
    Ok(id)
}

/// A copy by skopeo with a token, which checks every digest.
fn pull_with_token(crane: &str, token: &str, scratch: &Path) -> Result<()> {
    let dir = tempfile::tempdir_in(scratch)?;
    skopeo(&[
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        &format!("--src-registry-token={token}"),
        &format!("docker://{crane}/pulls/secret:latest"),
        &format!("dir:{}", dir.path().display()),
    ])?;
    Ok(())
}

/// What the API gives a robot.
fn token(server: &impl Server, secret: &str) -> Result<String> {
    let url = format!(
        "http://{}/token?service=pulp-registry&scope=repository:pulls/secret:pull",
        server.api()
    );
    let secret = secret.to_owned();
    let body: Value = pulp_tests::on_own_runtime(async move {
        let request = reqwest::Client::new()
            .get(url)
            .basic_auth("robot+ci", Some(secret));
        Ok(request.send().await?.error_for_status()?.json().await?)
    })?;
    Ok(body["token"].as_str().context("no token")?.to_owned())
}

#[test]
fn pulls_go_on_with_the_database_the_broker_and_all_other_roles_killed() -> Result<()> {
    let (mut postgres, mut rabbitmq) = (Postgres::start()?, RabbitMq::start()?);
    let keys = tempfile::tempdir()?;
    let (private, public) = (keys.path().join("token.key"), keys.path().join("token.pub"));
    Signer::generate(&private)?;
    let signer = Signer::open(&private, "pulp", "pulp-registry", Duration::from_mins(30))?;
    std::fs::write(&public, signer.public_pem())?;
    let tasks = format!(
        "worker_ttl_seconds = 6\n[token]\nkey_file = {private:?}\npublic_keys = [{public:?}]\nlifetime_seconds = 1800"
    );
    let mut cluster = Cluster::with(ClusterOptions {
        name: "alone",
        managers: 1,
        workers: 1,
        database_url: Some(postgres.create_database("alone")?),
        broker_url: Some(rabbitmq.url()),
        tasks: &tasks,
        ..ClusterOptions::default()
    })?;
    let expected = publish(&cluster, "open", false, 3)?;
    publish(&cluster, "secret", true, 2)?;
    let robot: Value =
        serde_json::from_str(&cluster.admin(&["--json", "auth", "robot", "create", "--name=ci"])?)?;
    cluster.admin(&["docker", "repo", "grant", "--repo-id=secret", "--robot=ci"])?;
    let token = token(&cluster, robot["secret"].as_str().context("no secret")?)?;
    let crane = cluster.crane().to_string();
    let image = format!("{crane}/pulls/open:latest");
    let docker = unless_root_is_needed(Dockerd::start(&[]))?;
    wait_for("both repositories in Crane", || {
        Ok(pull_with_token(&crane, &token, keys.path()).is_ok().then_some(()))
    })?;

    let (by_docker, by_token) = (Load::default(), Load::default());
    let loads = [&by_docker, &by_token];
    std::thread::scope(|scope| {
        let docker = &docker;
        let (image, crane, token, scratch) = (&image, &crane, &token, keys.path());
        let (docker_load, token_load) = (&by_docker, &by_token);
        if let Some(docker) = docker {
            scope.spawn(move || {
                docker_load.run(|| {
                    let id = pull_by_docker(docker, image)?;
                    ensure!(id == expected.to_string(), "got {id}");
                    Ok(())
                });
            });
        }
        scope.spawn(move || token_load.run(|| pull_with_token(crane, token, scratch)));
        let mut all = || -> Result<()> {
            let more = |count| -> Result<()> {
                if docker.is_some() {
                    by_docker.wait_for_more("pulls by docker", count)?;
                }
                by_token.wait_for_more("pulls with a token", count)
            };
            more(2)?;
            // In the middle of them, all at once.
            cluster.api_process.kill()?;
            cluster.scheduler.kill()?;
            for process in cluster.managers.iter_mut().chain(&mut cluster.workers) {
                process.kill()?;
            }
            postgres.kill()?;
            rabbitmq.kill()?;
            more(8)
        };
        let ended = all();
        for load in loads {
            load.stop.store(true, Ordering::Relaxed);
        }
        ended
    })?;
    for load in loads {
        assert_eq!(*load.errors.lock().unwrap(), Vec::<String>::new());
    }
    Ok(())
}

/// Points the tag to a manifest and publishes, each by its own task.
fn move_tag(server: &impl Server, digest: &str) -> Result<()> {
    let body = json!({
        "upload_id": server.upload(&[])?, "unit_type_id": "docker_tag",
        "unit_key": {"name": "latest", "repo_id": "moving"},
        "unit_metadata": {"name": "latest", "manifest_digest": digest, "digest": digest},
        "override_config": {},
    });
    let (status, report) = server.call("POST", "/repositories/moving/actions/import_upload/", Some(&body))?;
    ensure!(status == 202, "tag: {status} {report}");
    server.wait_until_finished(&server.publish("moving")?)?;
    Ok(())
}

/// Digests of the manifests that the tag named after each import of an image.
fn two_images(server: &impl Server) -> Result<Vec<(String, String)>> {
    server.create_repository("moving", "pulls/moving")?;
    let mut images = Vec::new();
    for layers in [2, 3] {
        let tar = docker_archive("app:latest", layers, 100_000)?.tar;
        let upload = server.upload(&tar)?;
        server.wait_until_finished(&server.import("moving", &upload, json!({}))?)?;
        server.wait_until_finished(&server.publish("moving")?)?;
        let config = saved::contents(&tar)?.image_id.to_string();
        let digest = wait_for("the image in Crane", || {
            let url = format!("http://{}/v2/pulls/moving/manifests/latest", server.crane());
            let answer = pulp_tests::http::get(&url)?;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let digest = answer.headers.get("docker-content-digest").cloned();
            Ok(digest.filter(|_| text.contains(&config)))
        })?;
        images.push((digest, config));
    }
    Ok(images)
}

#[test]
fn docker_pulls_the_old_or_the_new_image_whole_while_its_tag_is_published_every_100_ms() -> Result<()> {
    let Some(docker) = unless_root_is_needed(Dockerd::start(&[]))? else {
        return Ok(());
    };
    let server = Standalone::start()?;
    let images = two_images(&server)?;
    let image = format!("{}/pulls/moving:latest", server.crane());
    let load = Load::default();
    let seen = Mutex::new(BTreeSet::new());
    let published = AtomicUsize::new(0);
    let (stop, stopped) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (server, images, published) = (&server, &images, &published);
        let publishing = scope.spawn(move || -> Result<()> {
            for (digest, _) in images.iter().cycle() {
                move_tag(server, digest)?;
                published.fetch_add(1, Ordering::Relaxed);
                // Ends with the pulls; elsewise after the pause.
                match stopped.recv_timeout(PERIOD) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    _ => break,
                }
            }
            Ok(())
        });
        let pulling = scope.spawn(|| {
            load.run(|| {
                let id = pull_by_docker(&docker, &image)?;
                ensure!(images.iter().any(|(_, config)| *config == id), "got {id}");
                seen.lock().unwrap().insert(id);
                Ok(())
            });
        });
        let ended = load.wait_for_more("pulls by docker", 12).and_then(|()| {
            wait_for("publishes", || {
                Ok((published.load(Ordering::Relaxed) >= 20).then_some(()))
            })
        });
        load.stop.store(true, Ordering::Relaxed);
        drop(stop);
        let publishing = publishing.join().unwrap();
        pulling.join().unwrap();
        ended.and(publishing)
    })?;
    assert_eq!(*load.errors.lock().unwrap(), Vec::<String>::new());
    println!(
        "{} publishes, {} pulls, {} images seen",
        published.load(Ordering::Relaxed),
        load.done.load(Ordering::Relaxed),
        seen.lock().unwrap().len()
    );
    Ok(())
}
