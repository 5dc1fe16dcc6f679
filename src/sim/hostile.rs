//! Session ids and names that break careless clients: path tricks, reserved file names, odd scripts and characters.
//!
//! Only the tables; `dataset` decides which session gets which entry.

/// Ids of sessions 1, 2, 3, ... in a hostile account. `{}` stands for hexadecimal digits derived from the session.
pub(super) const IDS: &[&str] = &[
    "a/b{}",
    "/begins-with-slash{}",
    "holds//two-slashes{}",
    "p+l+u+s{}",
    "ends-in-equals{}==",
    "100%{}",
    "already%2Fencoded{}",
    "two words {}",
    "what?x=1&y={}",
    "fragment#{}",
    "..",
    "../../etc/passwd",
    "CON",
    "nul.txt",
    ".hidden{}",
    "trailing-dot{}.",
    LONG_ID,
    "séance-日本-😀-{}",
    "CaseTwin-Ab",
    "casetwin-aB",
    "quote\"and\\backslash{}",
    "control\u{1}and\nnewline{}",
    "//double-start/{}",
    "semi;colon,comma:star*{}",
];

/// Placeholder for an id of 300 hexadecimal digits.
pub(super) const LONG_ID: &str = "long";
pub(super) const LONG_ID_LENGTH: usize = 300;

/// Names of sessions 1, 2, 3, ...; these are all groups, as only groups have a name.
pub(super) const NAMES: &[&str] = &[
    "../../x",
    "a/b\\c",
    "bell\u{7} and escape\u{1b}[31m red",
    "invoice\u{202e}gpj.exe",
    LONG_NAME,
    "🔥🚀🎉",
    "",
    "CON",
    "Same name",
    "Same name",
    "Отдел продаж — Москва",
    "فريق المبيعات",
    "営業部・東京",
    "विपणन टीम",
    "영업팀 서울",
    "Ομάδα πωλήσεων",
    "צוות מכירות",
    "e\u{301}quipe combine\u{301}e",
    "equipe.",
    " leading and trailing ",
    "<script>alert(\"x\")</script>",
    "nul.txt",
    "line one\nline two\ttab",
    "👩‍👩‍👧‍👦 family \u{200b}zero\u{feff} width",
];

/// Placeholder for a name of 500 characters.
pub(super) const LONG_NAME: &str = "long name";
pub(super) const LONG_NAME_LENGTH: usize = 500;
