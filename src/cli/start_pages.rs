//! Gives back what only a start needed: pages of programs and libraries (linking, parsing options, reading certificates), and the allocator's.
//!
//! They are clean copies of what is on disk; whatever is needed again is mapped again. Only mappings that nobody can write to and that have no
//! page of their own are given back: those hold a file's bytes and nothing else.

use std::fs;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Gives them back.
///
/// # Errors
/// `/proc/self` can't be read, or the kernel refuses.
pub(super) fn give_back() -> io::Result<()> {
    for Range { start, end } in clean(&fs::read_to_string("/proc/self/smaps")?) {
        let address = NonNull::new(std::ptr::with_exposed_provenance_mut(start));
        let address = address.ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        // SAFETY: the range is a whole mapping of a file, in which no page differs from the file and which can't be written to; the kernel
        // maps the same bytes again when they are looked at.
        unsafe { madvise(address, end - start, MmapAdvise::MADV_DONTNEED)? };
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes nothing but a number, and gives back what isn't in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
    Ok(())
}

/// The mappings that hold their file's bytes only.
fn clean(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(mapping) = header(line) {
            current = mapping;
        } else if line.strip_prefix("Anonymous:").is_some_and(|rest| rest.split_whitespace().next() == Some("0")) {
            found.extend(current.take());
        }
    }
    found
}

/// `55d0c000-55d0d000 r-xp 00001000 fe:00 1234    /usr/local/bin/duet`: its addresses, if it is a file's and can't be written to. `None` for a
/// line of another kind.
fn header(line: &str) -> Option<Option<Range<usize>>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let is_writable = words.next()?.contains('w');
    let is_a_file = words.nth(2).is_some_and(|inode| inode != "0");
    Some(Some(range).filter(|_| is_a_file && !is_writable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_files_own_is_given_back() {
        let of = |range: &str, rights: &str, anonymous: u32, file: &str| {
            format!(
                "{range} {rights} 00001000 fe:00 {file}\nSize: 8 kB\nRss: 4 kB\nAnonymous:      {anonymous} kB\nVmFlags: rd\n"
            )
        };
        let smaps = [
            of("1000-3000", "r--p", 0, "1234   /bin/duet"),
            of("3000-9000", "r-xp", 0, "1234   /bin/duet"),
            of("9000-a000", "r--p", 4, "1234   /bin/duet"),
            of("a000-b000", "rw-p", 0, "1234   /bin/duet"),
            of("b000-c000", "r-xp", 0, "77     /lib/libc.so.6"),
            of("c000-d000", "r-xp", 0, "0      [vdso]"),
        ];
        assert_eq!(clean(&smaps.concat()), [0x1000..0x3000, 0x3000..0x9000, 0xb000..0xc000]);
    }

    #[test]
    fn the_program_goes_on() {
        give_back().unwrap();
        assert_eq!("still here".replace("still", "is"), "is here");
    }
}
