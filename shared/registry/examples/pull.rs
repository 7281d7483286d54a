//! Checks that an image can be pulled and every byte is right:
//! `cargo run -p pulp-registry --example pull -- http://localhost:5000 busybox [latest]`.
#![allow(missing_docs)]

use std::{error::Error, process::ExitCode};

use pulp_registry::{Client, ClientOptions, Discard, Reference};

#[tokio::main]
async fn main() -> ExitCode {
    match pull().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

async fn pull() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [base, name, rest @ ..] = arguments.as_slice() else {
        return Err("usage: pull REGISTRY-URL NAME [TAG-OR-DIGEST]".into());
    };
    let client = Client::new(base, ClientOptions::default())?;
    let reference: Reference = rest.first().map_or("latest", String::as_str).parse()?;
    let report = client.pull(&name.parse()?, &reference, &Discard).await?;
    println!("{}: {} bytes", report.root, report.bytes());
    for (digest, size) in &report.manifests {
        println!("manifest {digest} {size}");
    }
    for (digest, size) in &report.blobs {
        println!("blob     {digest} {size}");
    }
    Ok(())
}
