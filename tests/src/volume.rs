//! A volume of its own, which can be full and can be read-only. Only root can mount one.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use pulp_model::Digest;
use tempfile::TempDir;

use crate::files_below;

/// Mounts, says so, waits for the end of its input, and unmounts: also when the test was killed.
const KEEPER: &str = r#"trap '' INT TERM HUP
mount -t tmpfs -o "$2" pulp-faults "$1" && echo mounted && read -r _; umount -l "$1" 2>/dev/null; rmdir "$1" 2>/dev/null"#;

/// A directory that is a volume of its own, where that can be had.
pub struct Volume {
    path: PathBuf,
    /// None: a plain directory, whose faults can't be had.
    keeper: Option<Child>,
    folder: TempDir,
}

impl Volume {
    /// One with room for so many mebibytes.
    pub fn of(mebibytes: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("volume");
        fs::create_dir(&path)?;
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&path)
            .arg(format!("size={mebibytes}m"))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut said = String::new();
        if let Some(out) = keeper.stdout.take() {
            BufReader::new(out).read_line(&mut said)?;
        }
        let mounted = said.trim() == "mounted";
        if !mounted {
            keeper.wait()?;
            fs::create_dir_all(&path)?;
        }
        Ok(Self {
            path,
            keeper: mounted.then_some(keeper),
            folder,
        })
    }

    /// Whether it can be made full and read-only.
    pub fn can_fail(&self) -> bool {
        self.keeper.is_some()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the room there is.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.ballast())?;
        for piece in [vec![0; 1 << 20], vec![0; 4096]] {
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    /// Gives the room back.
    pub fn empty(&self) -> Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Makes it read-only, if there is a moment at which nobody writes; whether there was one.
    pub fn write_protect(&self) -> Result<bool> {
        for _ in 0..100 {
            if self.remount("ro")? {
                return Ok(true);
            }
            // Nobody tells that he has ended writing.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }

    /// Ends that again.
    pub fn allow_writing(&self) -> Result<()> {
        ensure!(self.remount("rw")?, "{} stays read-only", self.path.display());
        Ok(())
    }

    fn remount(&self, how: &str) -> Result<bool> {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(&self.path)
            .stderr(Stdio::null())
            .status()?;
        Ok(status.success())
    }

    /// What attempts have not cleaned up.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        files_below(&self.path.join("tmp"))
    }

    /// Reads every blob there is and compares it with its name; gives how many.
    pub fn verify(&self) -> Result<usize> {
        let blobs = files_below(&self.path.join("sha256"));
        for blob in &blobs {
            let digest = Digest::sha256(fs::read(blob)?).to_string();
            let name = blob.file_name().unwrap_or_default().to_string_lossy();
            if digest != format!("sha256:{name}") {
                bail!("the file {} has the digest {digest}", blob.display());
            }
        }
        Ok(blobs.len())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
        let _ = fs::create_dir_all(self.folder.path());
    }
}
