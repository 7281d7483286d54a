//! The `pulp-admin` binary: hands the process's arguments, streams and environment to the library.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    pulp_admin::run(std::env::args_os(), &pulp_admin::Io::process())
        .await
        .into()
}
