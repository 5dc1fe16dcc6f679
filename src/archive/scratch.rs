//! What assembly has to remember between its two passes: all entries in the order of their names, each with its hash and
//! with where its messages are, so that the second pass asks nothing of the index of the capture.
//!
//! In a throw-away file beside the capture, so that memory hardly grows with the number of sessions.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::SessionFiles;
use super::hash::Sha256Digest;
use super::sort::{Merged, Sorter, Spill};
use super::{ArchiveError, layout};
use crate::capture::{CaptureError, PageRef, SessionRow, pack};

/// Memory for entries, and for lines and names, before they go to the file.
const MOST_OF_ENTRIES: usize = 2 << 20;
const MOST_OF_LINES: usize = 512 << 10;

/// What an entry is made of.
#[derive(Debug, Serialize, Deserialize)]
pub enum Content<'a> {
    /// All of a session: what stands before its messages, and where they are.
    Session {
        #[serde(borrow)]
        head: Packed<'a>,
        pages: Cow<'a, [PageRef]>,
    },
    /// Items of one kind.
    Items(Cow<'a, [PageRef]>),
    Text(Packed<'a>),
    Lines(Lined),
}

/// A text as a piece of deflate.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packed<'a> {
    #[serde(borrow)]
    pub data: Cow<'a, [u8]>,
    pub raw_len: u64,
    pub crc32: u32,
}

impl Packed<'_> {
    pub fn of(text: &str, level: u32) -> Self {
        let (raw_len, crc32) = (text.len() as u64, crc32fast::hash(text.as_bytes()));
        Self { data: pack(text.as_bytes(), level).into(), raw_len, crc32 }
    }
}

/// A file with a line for each session, or for each other file.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Lined {
    Sessions,
    Sums,
}

/// What is written down of an entry; the file that holds the hashes of the others has none itself.
type Noted<'a> = (Option<Sha256Digest>, Content<'a>);

/// An entry as it is written down.
#[derive(Debug)]
pub struct Remembered {
    pub name: String,
    noted: Vec<u8>,
}

impl Remembered {
    pub fn new(
        name: String,
        content: &Content<'_>,
        sha256: Option<Sha256Digest>,
    ) -> Result<Self, ArchiveError> {
        // The same as `Noted`.
        let noted = postcard::to_stdvec(&(sha256, content)).map_err(std::io::Error::other)?;
        Ok(Self { name, noted })
    }
}

#[derive(Debug)]
pub struct Scratch {
    sessions: u64,
    /// Sessions whose files would meet another's on a disk that ignores case.
    colliding: HashSet<i64>,
    /// By the number of a session: whether its files have been added.
    added: Vec<bool>,
    entries: Sorter,
    lines: Sorter,
}

/// The names of all sessions: first of all it must be known which of them would meet.
#[derive(Debug)]
pub struct Names {
    spill: Arc<Spill>,
    folded: Sorter,
    sessions: u64,
}

impl Names {
    pub fn create(directory: &Path) -> Result<Self, ArchiveError> {
        let spill = Spill::create(directory.join("assemble.tmp"))?;
        Ok(Self { folded: Sorter::new(spill.clone(), MOST_OF_LINES), spill, sessions: 0 })
    }

    pub fn add(&mut self, session: i64, zoom_id: &str, name: &str) -> Result<(), ArchiveError> {
        self.sessions += 1;
        let key = layout::key(zoom_id);
        let number = session.to_le_bytes();
        self.folded.push(&folded(&key), &number)?;
        self.folded.push(&folded(&layout::session_entry(&key, name)), &number)?;
        Ok(())
    }

    pub fn settle(mut self) -> Result<Scratch, ArchiveError> {
        let mut colliding = HashSet::new();
        let mut merged = self.folded.merged()?;
        let mut before = (Vec::new(), 0);
        while let Some((folded, number)) = merged.next()? {
            let number = i64::from_le_bytes(number.try_into().map_err(std::io::Error::other)?);
            if before.0 == folded {
                colliding.extend([before.1, number]);
            }
            before = (folded.to_vec(), number);
        }
        Ok(Scratch {
            sessions: self.sessions,
            colliding,
            added: Vec::new(),
            entries: Sorter::new(self.spill.clone(), MOST_OF_ENTRIES),
            lines: Sorter::new(self.spill, MOST_OF_LINES),
        })
    }
}

/// The same for two names that differ only in the case of letters; for others almost never, and then they only get keys
/// that are less plain.
fn folded(name: &str) -> [u8; 8] {
    let digest = Sha256::digest(name.to_lowercase());
    *digest.first_chunk().expect("a digest has 32 bytes")
}

impl Scratch {
    /// What a session's files are named by.
    pub fn key(&self, session: &SessionRow) -> String {
        if self.colliding.contains(&session.id) {
            layout::hashed_key(&session.zoom_id)
        } else {
            layout::key(&session.zoom_id)
        }
    }

    /// Whether a session's files have been added.
    pub fn has(&self, session: i64) -> bool {
        self.added.get(session as usize).is_some_and(|added| *added)
    }

    pub fn add_sessions(&mut self, sessions: &[SessionFiles]) -> Result<(), ArchiveError> {
        for files in sessions {
            for entry in &files.entries {
                self.entries.push(entry.name.as_bytes(), &entry.noted)?;
            }
            self.lines.push(files.key.as_bytes(), files.line.as_bytes())?;
            let index = files.session as usize;
            if self.added.len() <= index {
                self.added.resize(index + 1, false);
            }
            self.added[index] = true;
        }
        Ok(())
    }

    /// An error unless the files of just those sessions that were named have been added.
    pub fn check_whole(&self) -> Result<(), CaptureError> {
        let added = self.added.iter().filter(|added| **added).count() as u64;
        if added == self.sessions {
            return Ok(());
        }
        Err(CaptureError::Damaged(format!("it named {} sessions and holds {added}", self.sessions)))
    }

    /// Feeds the lines of `sessions_summary.json` in the order of keys.
    pub fn lines(&mut self, mut each: impl FnMut(&str)) -> Result<(), ArchiveError> {
        let mut lines = self.lines.merged()?;
        while let Some((_, line)) = lines.next()? {
            each(text(line)?);
        }
        Ok(())
    }

    /// Adds a file that is of no session.
    pub fn add(
        &mut self,
        name: &str,
        content: &Content<'_>,
        sha256: Option<Sha256Digest>,
    ) -> Result<(), ArchiveError> {
        let entry = Remembered::new(name.to_owned(), content, sha256)?;
        Ok(self.entries.push(entry.name.as_bytes(), &entry.noted)?)
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// All entries in the order of their names.
    pub fn entries(&mut self) -> Result<Entries, ArchiveError> {
        Ok(Entries { merged: self.entries.merged()?, last: Vec::new() })
    }

    /// Feeds the lines of `SHA256SUMS`.
    pub fn sums(&mut self, mut each: impl FnMut(&str)) -> Result<(), ArchiveError> {
        let mut entries = self.entries.merged()?;
        while let Some((name, value)) = entries.next()? {
            // The hash stands first, and nothing else of it is needed.
            let (sha256, _): (Option<Sha256Digest>, _) =
                postcard::take_from_bytes(value).map_err(std::io::Error::other)?;
            if let Some(sha256) = sha256 {
                each(&format!("{}  {}", hex::encode(sha256), text(name)?));
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct Entries {
    merged: Merged,
    /// The name before.
    last: Vec<u8>,
}

impl Entries {
    /// The next name and what stands under it; no name comes twice.
    pub fn next(&mut self) -> Result<Option<(&str, Content<'_>)>, ArchiveError> {
        let Some((name, value)) = self.merged.next()? else { return Ok(None) };
        let text = text(name)?;
        if self.last == name {
            return Err(CaptureError::Damaged(format!("two files would be named {text}")).into());
        }
        name.clone_into(&mut self.last);
        let (_, content): Noted<'_> = postcard::from_bytes(value).map_err(std::io::Error::other)?;
        Ok(Some((text, content)))
    }
}

fn text(bytes: &[u8]) -> Result<&str, ArchiveError> {
    Ok(std::str::from_utf8(bytes).map_err(std::io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(session: i64, name: &str) -> SessionFiles {
        let entries = vec![Remembered::new(name.to_owned(), &Content::Items(Cow::default()), None).unwrap()];
        SessionFiles { session, key: format!("s{session}"), line: "{}".to_owned(), entries }
    }

    #[test]
    fn no_session_is_left_out_and_no_name_comes_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut names = Names::create(directory.path()).unwrap();
        for id in [1, 2] {
            names.add(id, &format!("s{id}"), "").unwrap();
        }
        let mut scratch = names.settle().unwrap();
        scratch.add_sessions(&[files(1, "messages/same.json")]).unwrap();
        assert!(scratch.check_whole().unwrap_err().is_damaged());
        scratch.add_sessions(&[files(2, "messages/same.json")]).unwrap();
        scratch.check_whole().unwrap();
        let mut entries = scratch.entries().unwrap();
        assert_eq!(entries.next().unwrap().unwrap().0, "messages/same.json");
        assert!(entries.next().unwrap_err().is_damaged_capture());
    }
}
