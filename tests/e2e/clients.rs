//! Today's clients: an image saved by docker, podman or skopeo, in each of their formats, is uploaded, published and
//! pulled by docker, containerd, podman and skopeo, by tag and by digest, and is the image that was saved.
//!
//! What must come out is read from the archives by [`pulp_tests::saved`], not by the code under test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_testkit::{Containerd, Dockerd, Podman, skopeo};
use pulp_tests::{
    Cluster, Pulp, Server, Standalone, http,
    images::docker_archive,
    saved::{Contents, Parts, contents, docker25_archive, gzip, members, oci_index_archive, tar_of_folder},
    wait_for,
};
use serde_json::Value;

/// The tag of every image here.
const TAG: &str = "1.0";

/// An archive, and what must come out of a pull.
struct Saved {
    /// Format, and so the name of the repository.
    format: &'static str,
    file: PathBuf,
    expected: Contents,
}

impl Saved {
    fn new(folder: &Path, format: &'static str, tar: &[u8]) -> Result<Self> {
        let file = folder.join(format!("{format}.tar"));
        fs::write(&file, tar)?;
        Self::at(format, file)
    }

    fn at(format: &'static str, file: PathBuf) -> Result<Self> {
        let expected = contents(&fs::read(&file)?).with_context(|| format!("the archive {format}"))?;
        Ok(Self {
            format,
            file,
            expected,
        })
    }
}

/// The clients that are here. The daemons need root; without them the others still pull.
struct Clients {
    docker: Option<Dockerd>,
    containerd: Option<Containerd>,
    podman: Podman,
}

impl Clients {
    fn start() -> Result<Self> {
        Ok(Self {
            docker: unless_root_is_needed(Dockerd::start(&[]))?,
            containerd: unless_root_is_needed(Containerd::start())?,
            podman: Podman::new()?,
        })
    }

    /// Pulls by all clients, by tag and by digest.
    fn pull(&self, server: &impl Server, name: &str, expected: &Contents) -> Result<()> {
        let place = format!("{}/{name}", server.crane());
        let root = root(server, name, TAG)?;
        if let Some(saved) = &expected.root {
            ensure!(root == *saved, "published as {root}, saved as {saved}");
        }
        for reference in [format!("{place}:{TAG}"), format!("{place}@{root}")] {
            self.docker(&reference, &root, expected)
                .with_context(|| format!("docker, {reference}"))?;
            self.containerd(&reference, &root, expected)
                .with_context(|| format!("containerd, {reference}"))?;
            self.podman(&reference, expected)
                .with_context(|| format!("podman, {reference}"))?;
            by_skopeo(&reference, server.folder(), &root, expected)
                .with_context(|| format!("skopeo, {reference}"))?;
        }
        Ok(())
    }

    fn docker(&self, reference: &str, root: &Digest, expected: &Contents) -> Result<()> {
        let Some(docker) = &self.docker else {
            return Ok(());
        };
        docker.docker(&["pull", "--quiet", reference])?;
        let inspected: Value = serde_json::from_str(&docker.docker(&["image", "inspect", reference])?)?;
        let image = &inspected[0];
        ensure!(
            image["Id"] == expected.image_id.to_string(),
            "got image {}, saved {}",
            image["Id"],
            expected.image_id
        );
        ensure!(
            image["RootFS"]["Layers"] == serde_json::json!(expected.diff_ids),
            "got layers {}, saved {:?}",
            image["RootFS"]["Layers"],
            expected.diff_ids
        );
        let digests = image["RepoDigests"].to_string();
        ensure!(
            digests.contains(&root.to_string()),
            "got digests {digests}, not {root}"
        );
        // The next pull must fetch every layer again.
        docker.docker(&["image", "rm", "--force", &expected.image_id.to_string()])?;
        Ok(())
    }

    fn containerd(&self, reference: &str, root: &Digest, expected: &Contents) -> Result<()> {
        let Some(containerd) = &self.containerd else {
            return Ok(());
        };
        let said = containerd.pull(reference)?;
        // Computed by containerd from what it unpacked.
        let chain_id = chain_id(&expected.diff_ids).to_string();
        ensure!(
            said.contains(&chain_id),
            "unpacked another image than {chain_id}\n{said}"
        );
        let images = containerd.ctr(&["images", "ls"])?;
        let line = images.lines().find(|l| l.starts_with(&format!("{reference} ")));
        ensure!(
            line.is_some_and(|l| l.contains(&root.to_string())),
            "not {root}\n{images}"
        );
        let config = containerd.ctr(&["content", "get", &expected.image_id.to_string()])?;
        ensure!(
            expected.image_id.matches(config.as_bytes()),
            "another configuration\n{config}"
        );
        // With the image its content goes, so that the next pull fetches everything again.
        containerd.ctr(&["images", "rm", "--sync", reference])?;
        Ok(())
    }

    fn podman(&self, reference: &str, expected: &Contents) -> Result<()> {
        let id = self.podman.pull(reference)?;
        ensure!(
            id == expected.image_id.hex(),
            "got image {id}, saved {}",
            expected.image_id
        );
        let layers = self
            .podman
            .podman(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", &id])?;
        let layers: Vec<String> = serde_json::from_str(&layers)?;
        ensure!(
            layers == expected.diff_ids,
            "got layers {layers:?}, saved {:?}",
            expected.diff_ids
        );
        self.podman.podman(&["image", "rm", "--force", &id])?;
        Ok(())
    }
}

/// What tests as another user than root do without.
pub(crate) fn unless_root_is_needed<T>(started: Result<T>) -> Result<Option<T>> {
    match started {
        Ok(client) => Ok(Some(client)),
        Err(error) if format!("{error:#}").contains("needs root") => {
            println!("passed over: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The name of a stack of layers, by the image specification ("Layer ChainID").
fn chain_id(diff_ids: &[String]) -> Digest {
    let below = |chain: String, next: &String| Digest::sha256(format!("{chain} {next}")).to_string();
    let mut rest = diff_ids.iter();
    let base = rest.next().cloned().unwrap_or_default();
    rest.fold(base, below).parse().unwrap()
}

/// Digest of what a tag names, as Crane says it and as its bytes have it.
fn root(server: &impl Server, name: &str, tag: &str) -> Result<Digest> {
    let url = format!("http://{}/v2/{name}/manifests/{tag}", server.crane());
    let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                  application/vnd.docker.distribution.manifest.list.v2+json, \
                  application/vnd.docker.distribution.manifest.v2+json";
    let answer = http::get_as(&url, accept)?;
    ensure!(
        answer.status == 200,
        "{url}: {} {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    let digest = Digest::sha256(&answer.body);
    ensure!(
        answer.headers.get("docker-content-digest") == Some(&digest.to_string()),
        "{:?}",
        answer.headers
    );
    Ok(digest)
}

/// Copies all platforms to a folder, and checks every file in it.
fn by_skopeo(reference: &str, scratch: &Path, root: &Digest, expected: &Contents) -> Result<()> {
    let folder = tempfile::tempdir_in(scratch)?;
    let target = format!("dir:{}", folder.path().display());
    let source = format!("docker://{reference}");
    skopeo(&[
        "copy",
        "--quiet",
        "--all",
        "--preserve-digests",
        "--src-tls-verify=false",
        &source,
        &target,
    ])?;
    let got = contents(&tar_of_folder(folder.path())?)?;
    ensure!(
        got.root.as_ref() == Some(root),
        "got {:?}, published {root}",
        got.root
    );
    let wanted = Contents {
        root: got.root.clone(),
        ..expected.clone()
    };
    ensure!(got == wanted, "got {got:?}, saved {wanted:?}");
    for (name, bytes) in members(&tar_of_folder(folder.path())?)? {
        let hex = name.trim_end_matches(".manifest.json");
        if hex.len() == 64 {
            ensure!(Digest::sha256(&bytes).hex() == hex, "{name} has another digest");
        }
    }
    Ok(())
}

/// Makes a repository of an archive and publishes it.
fn take_in(server: &impl Server, repo: &str, saved: &Saved, file: &Path) -> Result<()> {
    let id = format!("--repo-id={repo}");
    let registry_id = format!("--repo-registry-id=clients/{repo}");
    server.admin(&["docker", "repo", "create", &id, &registry_id])?;
    server.admin(&[
        "docker",
        "repo",
        "uploads",
        "upload",
        &id,
        "-f",
        &file.display().to_string(),
    ])?;
    if saved.format.starts_with("skopeo-dir") {
        // This format has no names.
        let digest = saved.expected.root.as_ref().context("no manifest")?.to_string();
        server.admin(&[
            "docker",
            "repo",
            "tag",
            &id,
            "--tag-name",
            TAG,
            "--digest",
            &digest,
        ])?;
    }
    server.admin(&["docker", "repo", "publish", "run", &id])?;
    Ok(())
}

/// An image of several layers in every format, as the programs that save images write them.
fn all_formats(folder: &Path, clients: &Clients) -> Result<Vec<Saved>> {
    let path = |name: &str| folder.join(name);
    let text = |name: &str| path(name).display().to_string();
    let docker_save = path("docker-save.tar");
    match &clients.docker {
        Some(docker) => build(docker, folder, &docker_save)?,
        None => fs::write(&docker_save, docker_archive("app:1.0", 4, 50_000)?.tar)?,
    }
    let bytes = fs::read(&docker_save)?;
    let mut all = vec![Saved::at("docker-save", docker_save.clone())?];

    let load = text("docker-save.tar");
    let podman = &clients.podman;
    podman.podman(&["load", "--quiet", "--input", &load])?;
    for (format, option) in [
        ("podman-docker-archive", "docker-archive"),
        ("podman-oci-archive", "oci-archive"),
    ] {
        let file = path(&format!("{format}.tar"));
        let output = file.display().to_string();
        podman.podman(&[
            "save", "--quiet", "--format", option, "--output", &output, "app:1.0",
        ])?;
        all.push(Saved::at(format, file)?);
    }
    podman.podman(&["image", "rm", "--all", "--force"])?;

    let source = format!("docker-archive:{load}");
    let copy = |target: &str| skopeo(&["copy", "--quiet", &source, target]);
    copy(&format!(
        "docker-archive:{}:app:{TAG}",
        text("skopeo-docker-archive.tar")
    ))?;
    all.push(Saved::at(
        "skopeo-docker-archive",
        path("skopeo-docker-archive.tar"),
    )?);
    copy(&format!("oci-archive:{}:{TAG}", text("skopeo-oci-archive.tar")))?;
    all.push(Saved::at("skopeo-oci-archive", path("skopeo-oci-archive.tar"))?);
    copy(&format!("dir:{}", text("dir")))?;
    all.push(Saved::new(folder, "skopeo-dir", &tar_of_folder(&path("dir"))?)?);

    let docker25 = docker25_archive(&Parts::of(&bytes)?, "app", TAG)?;
    all.push(Saved::new(folder, "docker-25-save", &docker25)?);

    let index = two_platforms(&bytes)?;
    all.push(Saved::new(folder, "oci-index", &index)?);
    let source = format!("oci-archive:{}", text("oci-index.tar"));
    let target = format!("dir:{}", text("dir-all"));
    skopeo(&["copy", "--quiet", "--all", "--preserve-digests", &source, &target])?;
    all.push(Saved::new(
        folder,
        "skopeo-dir-of-an-index",
        &tar_of_folder(&path("dir-all"))?,
    )?);
    Ok(all)
}

/// An index of the image given (amd64) and another one (arm64).
fn two_platforms(docker_archive_bytes: &[u8]) -> Result<Vec<u8>> {
    let other = docker_archive("other:1.0", 2, 10_000)?;
    let platforms = [
        ("amd64", Parts::of(docker_archive_bytes)?),
        ("arm64", Parts::of(&other.tar)?.on("arm64")),
    ];
    oci_index_archive(&platforms, TAG)
}

/// Builds an image of four layers by docker and saves it.
fn build(docker: &Dockerd, folder: &Path, target: &Path) -> Result<()> {
    let context = folder.join("build");
    fs::create_dir(&context)?;
    let base = docker_archive("base", 1, 20_000)?;
    let base = members(&base.tar)?
        .into_iter()
        .find(|(name, _)| name.ends_with("layer.tar"));
    fs::write(context.join("base.tar"), base.context("no layer")?.1)?;
    docker.docker(&[
        "import",
        &context.join("base.tar").display().to_string(),
        "base:1",
    ])?;
    for n in 1..=3_usize {
        fs::write(
            context.join(format!("f{n}")),
            format!("file {n}\n").repeat(n * 5000),
        )?;
    }
    fs::write(
        context.join("Dockerfile"),
        "FROM base:1\nCOPY f1 /data/f1\nENV A=1\nCOPY f2 /data/f2\nLABEL layers=4\nCOPY f3 /data/f3\nCMD [\"/bin/true\"]\n",
    )?;
    let context = context.display().to_string();
    run(docker
        .command(&["build", "--quiet", "--tag", "app:1.0", &context])
        .env("DOCKER_BUILDKIT", "0"))?;
    docker.docker(&["save", "--output", &target.display().to_string(), "app:1.0"])?;
    docker.docker(&["system", "prune", "--all", "--force"])?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn every_format_is_pulled_by_every_client_as_it_was_saved() -> Result<()> {
    let (server, clients, folder) = (Standalone::start()?, Clients::start()?, tempfile::tempdir()?);
    let all = all_formats(folder.path(), &clients)?;
    let mut failures = Vec::new();
    for saved in &all {
        let name = format!("clients/{}", saved.format);
        let result = take_in(&server, saved.format, saved, &saved.file)
            .and_then(|()| clients.pull(&server, &name, &saved.expected))
            .and_then(|()| compressed(&server, saved, folder.path()));
        if let Err(error) = result {
            failures.push(format!("{}: {error:#}", saved.format));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert_eq!(all.len(), 9);
    Ok(())
}

/// The archive as a whole compressed is the same image, down to the manifest's digest.
fn compressed(server: &impl Server, saved: &Saved, folder: &Path) -> Result<()> {
    let file = folder.join(format!("{}.tar.gz", saved.format));
    fs::write(&file, gzip(&fs::read(&saved.file)?)?)?;
    let repo = format!("{}-gz", saved.format);
    take_in(server, &repo, saved, &file).context("compressed")?;
    let plain = root(server, &format!("clients/{}", saved.format), TAG)?;
    let got = root(server, &format!("clients/{repo}"), TAG).context("compressed")?;
    ensure!(
        got == plain,
        "compressed it is published as {got}, plain as {plain}"
    );
    Ok(())
}

#[test]
fn separate_processes_serve_the_same_and_crane_alone_goes_on() -> Result<()> {
    let (mut cluster, clients, folder) = (Cluster::start()?, Clients::start()?, tempfile::tempdir()?);
    let docker_save = docker_archive("app:1.0", 4, 50_000)?.tar;
    let index = two_platforms(&docker_save)?;
    let all = [
        Saved::new(folder.path(), "docker-save", &docker_save)?,
        Saved::new(folder.path(), "oci-index", &index)?,
    ];
    for saved in &all {
        take_in(&cluster, saved.format, saved, &saved.file).context(saved.format)?;
        let name = format!("clients/{}", saved.format);
        wait_until_served(&cluster, &name)?;
        clients
            .pull(&cluster, &name, &saved.expected)
            .context(saved.format)?;
    }

    cluster.api_process.kill()?;
    cluster.scheduler.kill()?;
    for process in cluster.managers.iter_mut().chain(&mut cluster.workers) {
        process.kill()?;
    }
    // Crane from its files alone, and a Crane that starts only now.
    for saved in &all {
        let name = format!("clients/{}", saved.format);
        clients
            .pull(&cluster, &name, &saved.expected)
            .context("Crane alone")?;
    }
    cluster.crane_process.kill()?;
    let _crane = cluster.start_role("crane-again", "crane")?;
    for saved in &all {
        let name = format!("clients/{}", saved.format);
        wait_until_served(&cluster, &name)?;
        clients
            .pull(&cluster, &name, &saved.expected)
            .context("Crane started alone")?;
    }
    Ok(())
}

/// Crane looks for publications by itself, so it may be a moment behind.
fn wait_until_served(server: &impl Server, name: &str) -> Result<()> {
    let url = format!("http://{}/v2/{name}/tags/list", server.crane());
    wait_for(&format!("{name} in Crane"), || {
        Ok(http::get(&url).is_ok_and(|a| a.status == 200).then_some(()))
    })
}

#[test]
fn a_moved_tag_gives_clients_the_new_image_and_a_deleted_repository_is_unknown() -> Result<()> {
    let (server, clients, folder) = (Standalone::start()?, Clients::start()?, tempfile::tempdir()?);
    let first = Saved::new(
        folder.path(),
        "docker-save",
        &docker_archive("app:1.0", 2, 10_000)?.tar,
    )?;
    let second = Saved::new(folder.path(), "moved", &docker_archive("app:1.0", 3, 20_000)?.tar)?;
    take_in(&server, "app", &first, &first.file)?;
    let name = "clients/app";
    wait_until_served(&server, name)?;
    clients.pull(&server, name, &first.expected)?;
    let old = root(&server, name, TAG)?;

    server.admin(&[
        "docker",
        "repo",
        "uploads",
        "upload",
        "--repo-id=app",
        "-f",
        &second.file.display().to_string(),
    ])?;
    assert_eq!(
        root(&server, name, TAG)?,
        old,
        "an upload alone changes nothing for clients"
    );
    server.admin(&["docker", "repo", "publish", "run", "--repo-id=app"])?;
    let new = wait_for("the new image", || {
        Ok(Some(root(&server, name, TAG)?).filter(|digest| *digest != old))
    })?;
    clients.pull(&server, name, &second.expected)?;
    let url = |what: &str| format!("http://{}/v2/{name}/{what}", server.crane());
    let tags = http::get(&url("tags/list"))?.json()?;
    assert_eq!(tags["tags"], serde_json::json!([TAG]));
    // The image that lost its tag is still in the repository: who pinned its digest can pull it.
    let pinned = http::get(&url(&format!("manifests/{old}")))?;
    assert_eq!(Digest::sha256(&pinned.body), old);

    server.admin(&["docker", "repo", "delete", "--repo-id=app"])?;
    wait_for("the end of the repository", || {
        Ok((http::get(&url("tags/list"))?.status == 404).then_some(()))
    })?;
    for (what, code) in [
        ("tags/list".to_owned(), "NAME_UNKNOWN"),
        (format!("manifests/{TAG}"), "NAME_UNKNOWN"),
        (format!("manifests/{new}"), "NAME_UNKNOWN"),
    ] {
        let answer = http::get(&url(&what))?;
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (404, code),
            "{what}"
        );
    }
    let reference = format!("{}/{name}:{TAG}", server.crane());
    assert!(clients.podman.pull(&reference).is_err());
    if let Some(containerd) = &clients.containerd {
        assert!(containerd.pull(&reference).is_err());
    }
    if let Some(docker) = &clients.docker {
        assert!(docker.docker(&["pull", &reference]).is_err());
    }
    assert_eq!(
        fs::read_dir(server.data_dir().join("published/docker/v2/app"))?.count(),
        0
    );
    assert_eq!(
        fs::read_dir(server.data_dir().join("published/docker/app"))?.count(),
        0
    );
    Ok(())
}

/// A Crane that only redirects, as the original did: to the published files, which here the server's own Crane gives out.
struct Redirecting {
    _process: Pulp,
    address: std::net::SocketAddr,
}

impl Redirecting {
    fn start(server: &Standalone) -> Result<Self> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], pulp_testkit::free_port()?));
        let config = server.folder().join("redirecting.toml");
        fs::write(
            &config,
            format!(
                "[server]\ncrane_listen = \"{address}\"\n\
                 [crane]\nmode = \"redirect\"\ndata_dir = \"{}\"\n",
                server.data_dir().join("published/docker").display()
            ),
        )?;
        let config = config.display().to_string();
        let process = Pulp::start(
            "redirecting",
            server.folder(),
            &["crane", "--config", &config],
            &[],
        )?;
        wait_for("the redirecting Crane", || {
            Ok(std::net::TcpStream::connect(address).ok().map(drop))
        })?;
        Ok(Self {
            _process: process,
            address,
        })
    }
}

#[test]
fn a_crane_that_redirects_leads_clients_to_the_published_files() -> Result<()> {
    let (server, folder) = (Standalone::start()?, tempfile::tempdir()?);
    let docker_save = docker_archive("app:1.0", 3, 20_000)?.tar;
    let all = [
        Saved::new(folder.path(), "docker-save", &docker_save)?,
        Saved::new(folder.path(), "oci-index", &two_platforms(&docker_save)?)?,
    ];
    for saved in &all {
        take_in(&server, saved.format, saved, &saved.file)?;
    }
    let crane = Redirecting::start(&server)?;
    for saved in &all {
        let name = format!("clients/{}", saved.format);
        let root = root(&server, &name, TAG)?;
        let base = format!("http://{}/v2/{name}", crane.address);
        let files = format!("http://{}/pulp/docker/v2/{}/", server.crane(), saved.format);
        wait_for("the publication", || {
            Ok((http::get(&format!("{base}/tags/list"))?.status != 404).then_some(()))
        })?;
        let blob = http::get(&format!("{base}/blobs/{}", saved.expected.image_id))?;
        assert_eq!(blob.status, 302, "{name}");
        assert_eq!(
            blob.headers["location"],
            format!("{files}blobs/{}", saved.expected.image_id)
        );
        for reference in [format!(":{TAG}"), format!("@{root}")] {
            let reference = format!("{}/{name}{reference}", crane.address);
            by_skopeo(&reference, folder.path(), &root, &saved.expected).context(reference)?;
        }
    }
    Ok(())
}
