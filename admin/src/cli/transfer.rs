//! Options of exports and imports.

use clap::{Args, Subcommand};
use pulp_model::RepositoryId;

use super::{RunArgs, StatusArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum Export {
    /// export now
    Run(ExportArgs),
    /// follow the export that is under way
    Status(StatusArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// where the server writes the tar of the v1 format, an absolute path there
    #[arg(long, value_name = "PATH", conflicts_with = "format")]
    pub(crate) export_file: Option<String>,
    /// v1: the published v1 files; oci: an OCI layout with all that the repository holds, for closed networks [default: v1]
    #[arg(long, value_name = "FORMAT", value_parser = ["v1", "oci"])]
    pub(crate) format: Option<String>,
    /// oci: where the server writes, an absolute path there
    #[arg(long, value_name = "PATH", requires = "format")]
    pub(crate) export_dir: Option<String>,
    /// oci: one tar, perhaps in parts, or a directory of files [default: tar]
    #[arg(long, value_name = "LAYOUT", value_parser = ["tar", "directory"], requires = "format")]
    pub(crate) layout: Option<String>,
    /// oci: most bytes of a part, like 4G; one tar if not given
    #[arg(long, value_name = "SIZE", requires = "format")]
    pub(crate) part_size: Option<String>,
    /// oci: only what came after this version of the repository, or after the last export
    #[arg(long, value_name = "VERSION|last", requires = "format")]
    pub(crate) base: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Import {
    /// import now
    Run(ImportArgs),
    /// follow the import that is under way
    Status(StatusArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    /// the export's directory on the server, below its folder of imports
    #[arg(long, value_name = "PATH")]
    pub(crate) path: String,
    /// create the repository if it doesn't exist
    #[arg(long)]
    pub(crate) create: bool,
    /// remove what the repository has and the export has not
    #[arg(long)]
    pub(crate) remove_missing: bool,
    /// return as soon as the task is queued
    #[arg(long)]
    pub(crate) bg: bool,
}
