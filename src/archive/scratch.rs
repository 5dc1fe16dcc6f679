//! What assembly has to remember until the end, sorted: the names of all entries, each with its hash and its record in the
//! archive's directory, and the lines of the summary of sessions.
//!
//! Kept in a throw-away file beside the capture, so that memory hardly grows with the number of sessions.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::hash::Sha256Digest;
use super::sort::{Merged, Sorter, Spill};
use super::zip::Located;
use super::{ArchiveError, layout};
use crate::capture::{CaptureError, SessionRow};

/// Memory for each kind of record before it is sorted and spilled to the file.
const SORT_MEMORY: usize = 1 << 20;

/// What is remembered about an entry; the file of hashes has no hash of its own.
type Noted = (Option<Sha256Digest>, Located);

#[derive(Debug)]
pub struct Scratch {
    sessions: u64,
    /// Sessions whose line has been added.
    added: u64,
    entries: Sorter,
    lines: Sorter,
    not_found: Sorter,
}

/// The keys that sessions' files are named by.
#[derive(Debug)]
pub struct Keys {
    /// Sessions whose files would collide with another's on a case-insensitive disk.
    colliding: HashSet<i64>,
}

impl Keys {
    pub fn of(&self, session: &SessionRow) -> String {
        if self.colliding.contains(&session.id) {
            layout::hashed_key(&session.zoom_id)
        } else {
            layout::key(&session.zoom_id)
        }
    }
}

/// The names of all sessions: collisions must be known before any file is named.
#[derive(Debug)]
pub struct Names {
    directory: PathBuf,
    folded: Sorter,
    sessions: u64,
}

impl Names {
    pub fn create(directory: &Path) -> Result<Self, ArchiveError> {
        let folded = Sorter::new(spill(directory)?, SORT_MEMORY);
        Ok(Self { directory: directory.to_owned(), folded, sessions: 0 })
    }

    pub fn add(&mut self, session: i64, zoom_id: &str, name: &str) -> Result<(), ArchiveError> {
        self.sessions += 1;
        let key = layout::key(zoom_id);
        let number = session.to_le_bytes();
        self.folded.push(&folded(&key), &number)?;
        self.folded.push(&folded(&layout::session_entry(&key, name)), &number)?;
        Ok(())
    }

    pub fn settle(mut self) -> Result<(Keys, Scratch), ArchiveError> {
        let mut colliding = HashSet::new();
        let mut merged = self.folded.merged()?;
        let mut before: Option<(Folded, i64)> = None;
        while let Some((folded, number)) = merged.next()? {
            let folded = folded.try_into().map_err(std::io::Error::other)?;
            let number = i64::from_le_bytes(number.try_into().map_err(std::io::Error::other)?);
            if let Some((same, other)) = before.replace((folded, number))
                && same == folded
            {
                colliding.extend([other, number]);
            }
        }
        // A new file, so that the old one is gone before the system has written much of it to disk.
        let spill = spill(&self.directory)?;
        let scratch = Scratch {
            sessions: self.sessions,
            added: 0,
            entries: Sorter::new(spill.clone(), SORT_MEMORY),
            lines: Sorter::new(spill.clone(), SORT_MEMORY),
            not_found: Sorter::new(spill, SORT_MEMORY),
        };
        Ok((Keys { colliding }, scratch))
    }
}

fn spill(directory: &Path) -> std::io::Result<Arc<Spill>> {
    Spill::create(&directory.join("assemble.tmp"))
}

type Folded = [u8; 8];

/// Equal for names that differ only in case, and almost never for others, which would merely get less readable keys.
fn folded(name: &str) -> Folded {
    let digest = Sha256::digest(name.to_lowercase());
    *digest.first_chunk().expect("a digest has 32 bytes")
}

impl Scratch {
    /// The number of all sessions.
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// The number of sessions still to be added.
    pub fn missing(&self) -> u64 {
        self.sessions.saturating_sub(self.added)
    }

    /// Adds a session's line of the summary, after its files.
    pub fn add_line(&mut self, key: &str, line: &str) -> Result<(), ArchiveError> {
        self.added += 1;
        Ok(self.lines.push(key.as_bytes(), line.as_bytes())?)
    }

    pub fn add_entry(
        &mut self,
        name: &str,
        sha256: Option<Sha256Digest>,
        located: Located,
    ) -> Result<(), ArchiveError> {
        let noted: Noted = (sha256, located);
        let noted = postcard::to_stdvec(&noted).map_err(std::io::Error::other)?;
        Ok(self.entries.push(name.as_bytes(), &noted)?)
    }

    /// Returns an error unless exactly as many sessions were added as were named.
    pub fn check_whole(&self) -> Result<(), CaptureError> {
        let Self { sessions, added, .. } = self;
        if added == sessions {
            return Ok(());
        }
        Err(CaptureError::Damaged(format!("it listed {sessions} sessions but holds {added}")))
    }

    /// Adds a line to the list of what was not found; the list is sorted by first day and session.
    pub fn add_not_found(&mut self, key: &str, line: &str) -> Result<(), ArchiveError> {
        Ok(self.not_found.push(key.as_bytes(), line.as_bytes())?)
    }

    pub fn sorted_not_found(&mut self) -> Result<SortedLines, ArchiveError> {
        Ok(SortedLines(self.not_found.merged()?))
    }

    /// The lines of `sessions_summary.json` in the order of keys.
    pub fn sorted_lines(&mut self) -> Result<SortedLines, ArchiveError> {
        Ok(SortedLines(self.lines.merged()?))
    }

    /// Passes the lines of `SHA256SUMS` to `each`, in the order of names.
    pub fn sums(
        &mut self,
        mut each: impl FnMut(&str) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let mut entries = self.entries()?;
        while let Some((name, (sha256, _))) = entries.next()? {
            if let Some(sha256) = sha256 {
                each(&format!("{}  {name}", hex::encode(sha256)))?;
            }
        }
        Ok(())
    }

    /// All entries in the order of their names.
    pub fn entries(&mut self) -> Result<Entries, ArchiveError> {
        Ok(Entries { merged: self.entries.merged()?, last: Vec::new() })
    }
}

#[derive(Debug)]
pub struct SortedLines(Merged);

impl SortedLines {
    pub fn next(&mut self) -> Result<Option<&str>, ArchiveError> {
        self.0.next()?.map(|(_, line)| text(line)).transpose()
    }
}

#[derive(Debug)]
pub struct Entries {
    merged: Merged,
    /// The previous name.
    last: Vec<u8>,
}

impl Entries {
    /// Returns the next name and what was noted for it; a duplicate name is an error.
    pub fn next(&mut self) -> Result<Option<(&str, Noted)>, ArchiveError> {
        let Some((name, value)) = self.merged.next()? else { return Ok(None) };
        let text = text(name)?;
        if self.last == name {
            return Err(CaptureError::Damaged(format!("two files would be named {text}")).into());
        }
        name.clone_into(&mut self.last);
        Ok(Some((text, postcard::from_bytes(value).map_err(std::io::Error::other)?)))
    }
}

fn text(bytes: &[u8]) -> Result<&str, ArchiveError> {
    Ok(std::str::from_utf8(bytes).map_err(std::io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_session_is_left_out_and_no_name_comes_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut names = Names::create(directory.path()).unwrap();
        for id in [1, 2] {
            names.add(id, &format!("s{id}"), "").unwrap();
        }
        let (_, mut scratch) = names.settle().unwrap();
        let mut add = |key: &str| {
            scratch.add_entry("messages/same.json", None, Located::default()).unwrap();
            scratch.add_line(key, "{}").unwrap();
            scratch.check_whole()
        };
        assert!(add("s1").unwrap_err().is_damaged());
        add("s2").unwrap();
        let mut entries = scratch.entries().unwrap();
        assert_eq!(entries.next().unwrap().unwrap().0, "messages/same.json");
        assert!(entries.next().unwrap_err().is_damaged_capture());
    }
}
