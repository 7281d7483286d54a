//! The command tree and its options, named as in Pulp's client.

mod auth;
mod tasks;
mod transfer;
mod values;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use pulp_model::{Digest, DistributorId, RepositoryId, TagName};
use serde_json::Value;

use crate::{
    commands::WEB_DISTRIBUTOR,
    criteria::{Pair, UnitCriteriaArgs, instant, pair},
};

pub(crate) use auth::{Auth, Right, Rights, Robot, User};
pub(crate) use tasks::{CancelArgs, PurgeArgs, TaskArgs, TaskListArgs, TaskSearchArgs, Tasks};
pub(crate) use transfer::{Export, ExportArgs, Import, ImportArgs};

/// Manages the repositories of a Pulp server.
#[derive(Debug, Parser)]
#[command(
    name = "pulp-admin",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options that may stand before or behind the command's words.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// the server, like https://pulp.example.com or http://localhost:8080 [env: PULP_SERVER]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// login; a password not given is asked for [env: PULP_USERNAME]
    #[arg(short, long, global = true, value_name = "USER")]
    pub(crate) username: Option<String>,
    /// password [env: PULP_PASSWORD]
    #[arg(short, long, global = true, value_name = "PASS")]
    pub(crate) password: Option<String>,
    /// a further configuration file, which wins over the others
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// log failed requests to stderr; twice: every request and answer
    #[arg(short, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// print one JSON document for programs instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// print the tree of commands
    #[arg(long)]
    pub(crate) map: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// log in and keep a session, so that further commands need no password
    Login,
    /// end the session kept by login
    Logout,
    /// display the server's state
    Status,
    /// manage docker images
    #[command(subcommand)]
    Docker(Docker),
    /// list repositories of every type and their history
    #[command(subcommand)]
    Repo(Repo),
    /// list, inspect and cancel tasks
    #[command(subcommand)]
    Tasks(Tasks),
    /// users and robots
    #[command(subcommand)]
    Auth(Auth),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Docker {
    /// repository lifecycle commands
    #[command(subcommand)]
    Repo(DockerRepo),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DockerRepo {
    /// create a repository
    Create(CreateArgs),
    /// change a repository's settings; an empty value unsets a setting
    Update(UpdateArgs),
    /// delete a repository
    Delete(DeleteArgs),
    /// list the docker repositories
    List(ListArgs),
    /// point a tag to a manifest or a manifest list
    Tag(TagArgs),
    /// let a user or a robot pull while the repository is protected
    Grant(Right),
    /// take the right to pull away
    Revoke(Right),
    /// list who may pull while the repository is protected
    Rights(Rights),
    /// list a repository's images (the name of "search image" before 2.0)
    Images(SearchArgs),
    /// content search commands
    #[command(subcommand)]
    Search(Search),
    /// upload docker images into a repository
    #[command(subcommand)]
    Uploads(Uploads),
    /// fetch a docker repository from another registry
    #[command(subcommand)]
    Sync(Sync),
    /// publish a docker repository
    #[command(subcommand)]
    Publish(Publish),
    /// export a docker repository
    #[command(subcommand)]
    Export(Export),
    /// import an export of another server's repository
    #[command(subcommand)]
    Import(Import),
}

/// Settings of a repository that `create` and `update` share. A null stands for an empty value: unset.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// name for people
    #[arg(long, value_name = "NAME")]
    pub(crate) display_name: Option<String>,
    /// what the repository is for
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// a note KEY=VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) note: Vec<Pair>,

    /// publish after each change [default when created: true]
    #[arg(long, value_name = "true|false", value_parser = values::boolean, help_heading = "Publishing")]
    pub(crate) auto_publish: Option<bool>,
    /// base url of the published files; the server's own if not given
    #[arg(long, value_name = "URL", value_parser = values::text, help_heading = "Publishing")]
    pub(crate) redirect_url: Option<Value>,
    /// whether Crane asks clients for an entitlement or a token
    #[arg(long, value_name = "true|false", value_parser = values::flag, help_heading = "Publishing")]
    pub(crate) protected: Option<Value>,
    /// the name by which clients pull, for example pulpdemo/busybox
    #[arg(long, value_name = "NAME", value_parser = values::text, help_heading = "Publishing")]
    pub(crate) repo_registry_id: Option<Value>,

    /// url of the upstream registry
    #[arg(long, value_name = "URL", value_parser = values::text, help_heading = "Synchronization")]
    pub(crate) feed: Option<Value>,
    /// check what was downloaded
    #[arg(long, value_name = "true|false", value_parser = values::flag, help_heading = "Synchronization")]
    pub(crate) validate: Option<Value>,
    /// the repository's name upstream
    #[arg(long, value_name = "NAME", value_parser = values::text, help_heading = "Synchronization")]
    pub(crate) upstream_name: Option<Value>,
    /// sync from the registry API v1
    #[arg(long, value_name = "true|false", value_parser = values::flag, help_heading = "Synchronization")]
    pub(crate) enable_v1: Option<Value>,
    /// sync from the registry API v2
    #[arg(long, value_name = "true|false", value_parser = values::flag, help_heading = "Synchronization")]
    pub(crate) enable_v2: Option<Value>,
    /// sync only these tags, separated by commas: names, patterns like 1.*, or re: and a regular expression;
    /// "None" or an empty value means all
    #[arg(long, value_name = "A,B", value_parser = values::tag_list, help_heading = "Synchronization")]
    pub(crate) tags: Option<Value>,
    /// don't sync these tags; written like --tags
    #[arg(long, value_name = "A,B", value_parser = values::tag_list, help_heading = "Synchronization")]
    pub(crate) tags_exclude: Option<Value>,
    /// of tags that --tags doesn't name plainly, only versions in this range, like ">=1.2, <3"
    #[arg(long, value_name = "RANGE", value_parser = values::text, help_heading = "Synchronization")]
    pub(crate) tags_semver: Option<Value>,
    /// of tags that --tags doesn't name plainly, only so many of the highest versions
    #[arg(long, value_name = "NUMBER", value_parser = values::positive, help_heading = "Synchronization")]
    pub(crate) tags_newest: Option<Value>,
    /// of multi-platform images only these platforms, separated by commas: linux/amd64,linux/arm/v7
    #[arg(long, value_name = "A,B", value_parser = values::platform_list, help_heading = "Synchronization")]
    pub(crate) platforms: Option<Value>,
    /// keep their indexes as they are, or make new ones of the platforms taken
    #[arg(long, value_name = "sparse|rewrite", value_parser = values::platforms_mode, help_heading = "Synchronization")]
    pub(crate) platforms_mode: Option<Value>,
    /// remove tags that the upstream has no more, or that the filter doesn't take any more
    #[arg(long, value_name = "true|false", value_parser = values::flag, help_heading = "Synchronization")]
    pub(crate) remove_missing: Option<Value>,
    /// sync signatures, SBOMs and attestations that refer to what the tags name
    #[arg(long, value_name = "true|false", value_parser = values::flag, help_heading = "Synchronization")]
    pub(crate) referrers: Option<Value>,
    /// of these only those of the artifact types given, separated by commas
    #[arg(long, value_name = "A,B", value_parser = values::text, help_heading = "Synchronization")]
    pub(crate) referrer_types: Option<Value>,

    /// PEM file of the CA that signed the feed's certificate
    #[arg(long, value_name = "FILE", help_heading = "Feed SSL")]
    pub(crate) feed_ca_cert: Option<PathBuf>,
    /// check the feed's certificate
    #[arg(long, value_name = "true|false", value_parser = values::flag, help_heading = "Feed SSL")]
    pub(crate) verify_feed_ssl: Option<Value>,
    /// PEM file of the client certificate for the feed
    #[arg(long, value_name = "FILE", help_heading = "Feed SSL")]
    pub(crate) feed_cert: Option<PathBuf>,
    /// PEM file of the client certificate's key
    #[arg(long, value_name = "FILE", help_heading = "Feed SSL")]
    pub(crate) feed_key: Option<PathBuf>,

    /// host of the proxy to the feed
    #[arg(long, value_name = "HOST", value_parser = values::text, help_heading = "Feed proxy")]
    pub(crate) proxy_host: Option<Value>,
    /// port of the proxy
    #[arg(long, value_name = "PORT", value_parser = values::port, help_heading = "Feed proxy")]
    pub(crate) proxy_port: Option<Value>,
    /// login at the proxy
    #[arg(long, value_name = "USER", value_parser = values::text, help_heading = "Feed proxy")]
    pub(crate) proxy_user: Option<Value>,
    /// password at the proxy
    #[arg(long, value_name = "PASS", value_parser = values::text, help_heading = "Feed proxy")]
    pub(crate) proxy_pass: Option<Value>,

    /// login at the feed
    #[arg(long, value_name = "USER", value_parser = values::text, help_heading = "Basic authentication")]
    pub(crate) basicauth_user: Option<Value>,
    /// password at the feed
    #[arg(long, value_name = "PASS", value_parser = values::text, help_heading = "Basic authentication")]
    pub(crate) basicauth_pass: Option<Value>,

    /// downloads at once
    #[arg(long, value_name = "NUMBER", value_parser = values::positive, help_heading = "Throttling")]
    pub(crate) max_downloads: Option<Value>,
    /// bytes a second of all downloads of a sync together
    #[arg(long, value_name = "NUMBER", value_parser = values::positive, help_heading = "Throttling")]
    pub(crate) max_speed: Option<Value>,
    /// seconds that a connection may take to be made
    #[arg(long, value_name = "SECONDS", value_parser = values::positive, help_heading = "Throttling")]
    pub(crate) connect_timeout: Option<Value>,
    /// seconds that nothing may come on a connection
    #[arg(long, value_name = "SECONDS", value_parser = values::positive, help_heading = "Throttling")]
    pub(crate) read_timeout: Option<Value>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    #[command(flatten)]
    pub(crate) settings: Box<Settings>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// return as soon as the changes are queued
    #[arg(long)]
    pub(crate) bg: bool,
    /// point a v1 tag to an image, by 6 digits of its id or more; may be repeated
    #[arg(long, value_name = "NAME:IMAGE", value_parser = values::v1_tag, help_heading = "Tags (v1)")]
    pub(crate) tag: Vec<(String, String)>,
    /// remove a v1 tag; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Tags (v1)")]
    pub(crate) remove_tag: Vec<String>,
    #[command(flatten)]
    pub(crate) settings: Box<Settings>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// return as soon as the deletion is queued
    #[arg(long)]
    pub(crate) bg: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// only this repository
    #[arg(long)]
    pub(crate) repo_id: Option<RepositoryId>,
    /// ids and names only
    #[arg(short, long)]
    pub(crate) summary: bool,
    /// importers, distributors and notes as well
    #[arg(long)]
    pub(crate) details: bool,
    /// only these fields, separated by commas; the id is always shown
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) fields: Vec<String>,
    /// repositories of other types as well
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// the tag; created, or moved if it exists
    #[arg(long)]
    pub(crate) tag_name: TagName,
    /// digest of the manifest or manifest list, which must be in the repository
    #[arg(long, visible_alias = "manifest-digest")]
    pub(crate) digest: Digest,
    /// return as soon as the change is queued
    #[arg(long)]
    pub(crate) bg: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Search {
    /// search for v1 images
    Image(SearchArgs),
    /// search for image manifests
    Manifest(SearchArgs),
    /// search for manifest lists
    ManifestList(SearchArgs),
    /// search for tags
    Tag(SearchArgs),
    /// search for blobs
    Blob(SearchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// internal fields as well
    #[arg(short, long)]
    pub(crate) details: bool,
    #[command(flatten)]
    pub(crate) criteria: Box<UnitCriteriaArgs>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Uploads {
    /// upload saved images: docker save, OCI layouts, skopeo dir, manifest lists
    Upload(UploadArgs),
    /// list the uploads that this user began and that are not done
    List,
    /// continue paused uploads where the server has them
    Resume(ChooseUploads),
    /// give up paused uploads
    Cancel(CancelUploads),
}

#[derive(Debug, Args)]
pub(crate) struct UploadArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// a file; may be repeated
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// a folder, whose images are all uploaded; may be repeated
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) dir: Vec<PathBuf>,
    /// v1 images: leave out this image and its ancestors
    #[arg(short, long, value_name = "IMAGE")]
    pub(crate) mask_id: Option<String>,
    /// return as soon as the import is queued
    #[arg(long)]
    pub(crate) bg: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChooseUploads {
    /// this upload; may be repeated
    #[arg(long, value_name = "ID")]
    pub(crate) upload_id: Vec<String>,
    /// every paused upload
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CancelUploads {
    #[command(flatten)]
    pub(crate) choose: ChooseUploads,
    /// forget the upload here even if the server can't delete it
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sync {
    /// sync now
    Run(SyncArgs),
    /// follow the sync that is under way
    Status(StatusArgs),
    /// syncs that begin by themselves
    #[command(subcommand)]
    Schedules(Schedules),
}

#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// return as soon as the task is queued
    #[arg(long)]
    pub(crate) bg: bool,
    /// only tell what would be fetched, added and removed
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Publish {
    /// publish now
    Run(RunArgs),
    /// follow the publish that is under way
    Status(StatusArgs),
    /// publishes that begin by themselves
    #[command(subcommand)]
    Schedules(Schedules),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schedules {
    /// list the schedules
    List(ScheduleListArgs),
    /// make a schedule
    Create(ScheduleCreateArgs),
    /// change a schedule
    Update(ScheduleUpdateArgs),
    /// delete a schedule
    Delete(ScheduleArgs),
    /// display when the next run is
    Next(ScheduleNextArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleListArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// first run, counts and settings as well
    #[arg(short, long)]
    pub(crate) details: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleCreateArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// when: [Rn/][start/]duration of ISO 8601, like PT6H or 2026-01-01T02:00Z/P1D
    #[arg(short, long, value_name = "WHEN")]
    pub(crate) schedule: String,
    /// disable it after so many failed runs in a row
    #[arg(short, long, value_name = "NUMBER", value_parser = values::positive)]
    pub(crate) failure_threshold: Option<Value>,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleUpdateArgs {
    #[command(flatten)]
    pub(crate) which: ScheduleArgs,
    /// when: [Rn/][start/]duration of ISO 8601
    #[arg(short, long, value_name = "WHEN")]
    pub(crate) schedule: Option<String>,
    /// disable it after so many failed runs in a row; an empty value: never
    #[arg(short, long, value_name = "NUMBER", value_parser = values::positive)]
    pub(crate) failure_threshold: Option<Value>,
    /// whether it runs
    #[arg(long, value_name = "true|false", value_parser = values::boolean)]
    pub(crate) enabled: Option<bool>,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// id of the schedule
    #[arg(long, value_name = "ID")]
    pub(crate) schedule_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleNextArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// the time alone
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// return as soon as the task is queued
    #[arg(long)]
    pub(crate) bg: bool,
    /// publish even if nothing has changed
    #[arg(long)]
    pub(crate) force_full: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// only tell whether it is under way
    #[arg(long)]
    pub(crate) bg: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Repo {
    /// list the repositories of all types
    List(ListArgs),
    /// what happened to a repository
    #[command(subcommand)]
    History(History),
}

#[derive(Debug, Subcommand)]
pub(crate) enum History {
    /// list the publishes of a repository, the latest first
    Publish(HistoryArgs),
    /// list the syncs of a repository, the latest first
    Sync(SyncHistoryArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SyncHistoryArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    #[command(flatten)]
    pub(crate) which: WhichHistory,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// id of the distributor
    #[arg(long, default_value = WEB_DISTRIBUTOR)]
    pub(crate) distributor_id: DistributorId,
    #[command(flatten)]
    pub(crate) which: WhichHistory,
}

/// Which entries of a history, and how much of each.
#[derive(Debug, Args)]
pub(crate) struct WhichHistory {
    /// at most this many entries
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
    /// order by time
    #[arg(long, value_parser = ["ascending", "descending"])]
    pub(crate) sort: Option<String>,
    /// begun at this time or later (ISO 8601)
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(crate) start_date: Option<String>,
    /// begun at this time or earlier (ISO 8601)
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(crate) end_date: Option<String>,
    /// the steps' reports as well
    #[arg(short, long)]
    pub(crate) details: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
