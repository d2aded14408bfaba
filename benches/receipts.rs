//! What receipts cost: checking an archive, proving one of a million, appending, and the canonical form, each beside the
//! bare arithmetic that nothing can do without. All in one run, and of receipts made here.
//!
//! The million are written and checked by processes of their own, so that their memory is theirs alone.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a program that prints, and that has nothing better to do than to stop when it cannot go on"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Instant;
use std::{env, iter, thread};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use benches::percentile;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey, verify_batch};
use flate2::read::GzDecoder;
use jiff::Timestamp;
use receipts::archive::{self, ArchiveInput, Limits, Opening};
use receipts::merkle::{CompactRange, Hash, leaf_hash, verify_inclusion};
use receipts::receipt::{ActionOutcome, Concurrency, Quota, Resources, Scaling, UsdDelta};
use receipts::tile::{Tile, TileWriter, Tiles, inclusion_proof_from, inclusion_tiles};
use receipts::{
    Chain, Checkpoint, Draft, Head, KeyRing, Ledger, Payload, Receipt, Signer, append, jcs, sha256_hex,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Receipts in the archive whose checking is taken apart.
const BUSY: u64 = 100_000;
const MILLION: u64 = 1_000_000;
/// Drafts in a group: one action each, as a governor commits a batch of signals.
const GROUP: usize = 10;
const ROUNDS: usize = 5;
/// Signatures in a batch of the bare cost.
const BATCH: usize = 256;

const RATIO_AIM: f64 = 1.5;
const MEMORY_AIM_MIB: f64 = 64.0;
const PROOF_AIM_MS: f64 = 50.0;

const SEED: [u8; 32] = [7; 32];
const ACCOUNT: &str = "customer-123";
const POLICY: &[u8] = br#"{"version":"1.4.2"}"#;
/// 2026-11-01T00:00:00Z.
const START_MS: i64 = 1_793_491_200_000;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("receipts");
    // `cargo bench` brings `--bench`.
    match arguments.first().map(String::as_str) {
        Some("write") => write_million(&folder),
        Some("verify") => verify_million(&folder),
        _ => return measure(&folder),
    }
    ExitCode::SUCCESS
}

fn measure(folder: &Path) -> ExitCode {
    fs::create_dir_all(folder).expect("a folder for the archive");
    let mut aims = Aims::default();
    busy_archive(&mut aims);
    let ledger = million(folder, &mut aims);
    proofs(&ledger, &mut aims);
    appending(&ledger.head);
    canonical_form();
    fs::remove_dir_all(folder).expect("removing what was written");
    if aims.missed {
        println!("\nAn aim was missed.");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Which aims were missed, for the exit code.
#[derive(Default)]
struct Aims {
    missed: bool,
}

impl Aims {
    fn at_most(&mut self, limit: f64, unit: &str, found: f64) -> String {
        let verdict = if found <= limit { "ok" } else { "MISSED" };
        self.missed |= found > limit;
        format!("≤ {limit}{unit}: {verdict}")
    }
}

/// An archive of a busy tenant against its own unpacking, hashing and signatures.
fn busy_archive(aims: &mut Aims) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let lines = Receipts::new().lines(BUSY as usize);
    let mut archive = Vec::new();
    let leaves: Vec<_> = lines.iter().map(leaf_hash).collect();
    let note = sign(BUSY, CompactRange::of(&leaves).root());
    write_archive(&mut archive, &note, lines.iter().cloned());
    let bare = Bare::of(&lines);
    let keys = keys();

    println!(
        "\nChecking an archive of {BUSY} receipts ({} MiB, unpacked {} MiB), µs a receipt: p50 of {ROUNDS} rounds, all in\n\
         turns. bare: gunzip and SHA-256 of what comes out, and batches of {BATCH} signatures, over as many threads.\n\
         CPU: the ratio of CPU times, which other work on the machine hardly moves. ratio: of the time it took.\n",
        archive.len() >> 20,
        lines.iter().map(|line| line.len() + 1).sum::<usize>() >> 20,
    );
    println!(
        "{:<10}{:>16}{:>14}{:>10}{:>10}{:>9}{:>9}  aim",
        "threads", "gunzip + SHA", "signatures", "bare", "verify", "CPU", "ratio"
    );
    // One thread that does all, and as `ggen` does it: one for each core beside the one that unpacks.
    for (workers, aim) in [(0, None), (cores, Some(RATIO_AIM))] {
        let (mut unpacked, mut signed, mut both, mut ours) = (vec![], vec![], vec![], vec![]);
        let mut cpu_ratios = vec![];
        for _ in 0..ROUNDS {
            unpacked.push(micros(|| unpack(&archive)));
            signed.push(micros(|| bare.run(workers + 1, None)));
            let before = cpu_ticks();
            both.push(micros(|| bare.run(workers + 1, Some(&archive))));
            let between = cpu_ticks();
            ours.push(micros(|| {
                let limits = Limits {
                    threads: workers,
                    ..Limits::default()
                };
                let verified = archive::verify(archive.as_slice(), &keys, limits).expect("a good archive");
                assert_eq!(verified.receipts, BUSY);
            }));
            cpu_ratios.push((cpu_ticks() - between) / (between - before));
        }
        // Of each round by itself: what else the machine does then falls on both.
        let ratios: Vec<_> = ours.iter().zip(&both).map(|(ours, both)| ours / both).collect();
        let [cpu_ratio, ratio] = [cpu_ratios, ratios].map(|samples| percentile(&samples, 50));
        let [unpacked, signed, both, ours] =
            [unpacked, signed, both, ours].map(|samples| percentile(&samples, 50) / BUSY as f64);
        println!(
            "{:<10}{unpacked:>16.2}{signed:>14.2}{both:>10.2}{ours:>10.2}{cpu_ratio:>9.2}{ratio:>9.2}  {}",
            workers + 1,
            aim.map_or("—".to_owned(), |aim| aims.at_most(aim, "", ratio))
        );
    }
}

/// CPU time of this process so far, of all its threads, in the kernel's ticks.
fn cpu_ticks() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("the process's status");
    let (_, fields) = stat.rsplit_once(") ").expect("fields behind the name");
    // Fields 14 and 15, and the state is the third.
    let times = fields.split(' ').skip(11).take(2);
    times.map(|ticks| ticks.parse::<f64>().expect("ticks")).sum()
}

/// What checking signatures takes and nothing else: messages and signatures ready to be given to the library.
struct Bare {
    messages: Vec<String>,
    signatures: Vec<Signature>,
    key: VerifyingKey,
}

impl Bare {
    fn of(lines: &[String]) -> Self {
        let (messages, signatures) = lines
            .iter()
            .map(|line| {
                let (before, rest) = line.split_once("\"signature\":\"").expect("a signature");
                let (signature, after) = rest.split_once("\",").expect("its end");
                let bytes = STANDARD.decode(signature).expect("base64");
                let signature = Signature::from_slice(&bytes).expect("64 bytes");
                (format!("{before}{after}"), signature)
            })
            .unzip();
        Self {
            messages,
            signatures,
            key: SigningKey::from_bytes(&SEED).verifying_key(),
        }
    }

    /// Checks all signatures, and unpacks the archive where there is one, on `threads` threads.
    fn run(&self, threads: usize, archive: Option<&[u8]>) {
        let keys = [self.key; BATCH];
        let jobs = self.messages.chunks(BATCH).zip(self.signatures.chunks(BATCH));
        let archive = Mutex::new(archive);
        let jobs = Mutex::new(jobs);
        let work = || {
            let taken = archive.lock().unwrap().take();
            if let Some(archive) = taken {
                unpack(archive);
            }
            loop {
                let job = jobs.lock().unwrap().next();
                let Some((messages, signatures)) = job else {
                    return;
                };
                let messages: Vec<_> = messages.iter().map(String::as_bytes).collect();
                verify_batch(&messages, signatures, &keys[..messages.len()]).expect("good signatures");
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    }
}

/// Gunzip, and SHA-256 of what comes out.
fn unpack(archive: &[u8]) {
    let mut stream = GzDecoder::new(archive);
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer).expect("a good stream");
        if read == 0 {
            black_box(sha256.finalize());
            return;
        }
        sha256.update(&buffer[..read]);
    }
}

/// What later measurements need of the ledger of a million.
struct Million {
    head: Head,
    tiles: BTreeMap<Tile, Vec<u8>>,
}

/// Writing and checking the archive of a million, each in a fresh process.
fn million(folder: &Path, aims: &mut Aims) -> Million {
    let mut tiles = TileWriter::new();
    let mut full = BTreeMap::new();
    let mut made = Receipts::new();
    let mut file = BufWriter::new(File::create(lines_file(folder)).expect("a file for the lines"));
    while made.head.size < MILLION {
        for line in made.group() {
            writeln!(file, "{line}").expect("writing the lines");
            full.extend(tiles.push(leaf_hash(&line)));
        }
    }
    let head = made.head;
    file.flush().expect("writing the lines");
    let root = head.root().expect("a root");
    assert_eq!(root, tiles.root(), "the tiles are another ledger's");
    full.extend(tiles.finish());
    fs::write(note_file(folder), sign(MILLION, root)).expect("writing the checkpoint");

    println!(
        "\n{MILLION} receipts as a stream, each in a fresh process: the peak of its resident memory (VmHWM).\n"
    );
    println!(
        "{:<22}{:>8}{:>12}{:>10}  aim",
        "", "s", "archive MiB", "VmHWM MiB"
    );
    for (what, argument) in [("write the archive", "write"), ("verify the archive", "verify")] {
        let started = Instant::now();
        let output = Command::new(env::current_exe().expect("this program's path"))
            .arg(argument)
            .output()
            .expect("this program again");
        assert!(output.status.success(), "{argument}: {output:?}");
        let seconds = started.elapsed().as_secs_f64();
        let answer = String::from_utf8_lossy(&output.stdout);
        let peak: f64 = answer.trim().parse().expect("the peak in MiB");
        let archive = fs::metadata(archive_file(folder)).expect("the archive").len() >> 20;
        println!(
            "{what:<22}{seconds:>8.1}{archive:>12}{peak:>10.1}  {}",
            aims.at_most(MEMORY_AIM_MIB, " MiB", peak)
        );
    }
    Million { head, tiles: full }
}

fn lines_file(folder: &Path) -> PathBuf {
    folder.join("lines.jsonl")
}

fn note_file(folder: &Path) -> PathBuf {
    folder.join("checkpoint")
}

fn archive_file(folder: &Path) -> PathBuf {
    folder.join("archive.tar.gz")
}

/// In a process of its own; says its peak of resident memory.
fn write_million(folder: &Path) {
    let lines = BufReader::new(File::open(lines_file(folder)).expect("the lines"));
    let note = fs::read_to_string(note_file(folder)).expect("the checkpoint");
    let archive = BufWriter::new(File::create(archive_file(folder)).expect("a file for the archive"));
    write_archive(archive, &note, lines.lines().map(|line| line.expect("a line")));
    println!("{}", peak_mib());
}

/// In a process of its own; says its peak of resident memory.
fn verify_million(folder: &Path) {
    let archive = File::open(archive_file(folder)).expect("the archive");
    let limits = Limits {
        threads: thread::available_parallelism().map_or(1, usize::from),
        ..Limits::default()
    };
    let verified = archive::verify(archive, &keys(), limits).expect("a good archive");
    assert_eq!(verified.receipts, MILLION);
    println!("{}", peak_mib());
}

fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("the process's status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|text| text.trim().strip_suffix(" kB"));
    kib.expect("VmHWM in kB").parse::<f64>().expect("a number") / 1024.0
}

/// One receipt of a million, proved from stored tiles.
fn proofs(ledger: &Million, aims: &mut Aims) {
    const PROOFS: usize = 1_000;
    let root = ledger.head.root().expect("a root");
    let mut random = Random(1);
    let (mut times, mut tiles, mut bytes) = (vec![], vec![], vec![]);
    for _ in 0..PROOFS {
        let index = random.below(MILLION);
        let leaf = leaf_at(index, &ledger.tiles);
        let started = Instant::now();
        let needed = inclusion_tiles(index, MILLION).expect("a leaf of the tree");
        let mut fetched = Tiles::new();
        for tile in &needed {
            fetched
                .insert(*tile, &ledger.tiles[tile])
                .expect("the tile's bytes");
        }
        let proof = inclusion_proof_from(index, MILLION, &fetched).expect("all tiles");
        verify_inclusion(index, MILLION, &leaf, &proof, &root).expect("a good proof");
        times.push(started.elapsed().as_secs_f64() * 1e3);
        tiles.push(needed.len() as f64);
        bytes.push(needed.iter().map(Tile::len_bytes).sum::<usize>() as f64 / 1024.0);
    }
    println!(
        "\nProving that a receipt is one of {MILLION}, from tiles: naming them, the proof, checking it. {PROOFS} receipts.\n"
    );
    println!("{:<8}{:>10}{:>8}{:>8}  aim", "", "ms", "tiles", "KiB");
    for percent in [50, 99] {
        let [ms, tiles, kib] = [&times, &tiles, &bytes].map(|samples| percentile(samples, percent));
        println!(
            "{:<8}{ms:>10.3}{tiles:>8}{kib:>8.1}  {}",
            format!("p{percent}"),
            aims.at_most(PROOF_AIM_MS, " ms", ms)
        );
    }
}

fn leaf_at(index: u64, tiles: &BTreeMap<Tile, Vec<u8>>) -> Hash {
    let tile = Tile::at(0, index / 256, MILLION).expect("a tile of the tree");
    let (hashes, _) = tiles[&tile].as_chunks();
    hashes[(index % 256) as usize]
}

/// A group of ten behind a million, without its transaction.
fn appending(head: &Head) {
    const TIMES: usize = 200;
    let drafts = Receipts::new().drafts();
    let signer = signer();
    let now = head.timestamp;
    let key = SigningKey::from_bytes(&SEED);
    let appended = append(head, &drafts, now, &signer).expect("good drafts");
    let messages = Bare::of(&lines_of(&appended.sealed)).messages;
    let (mut bare, mut ours) = (vec![], vec![]);
    for _ in 0..ROUNDS * 10 {
        bare.push(micros(|| {
            for message in iter::repeat_n(&messages, TIMES / GROUP).flatten() {
                black_box(Sha256::digest(message));
                black_box(key.sign(message.as_bytes()));
            }
        }));
        ours.push(micros(|| {
            for _ in 0..TIMES / GROUP {
                black_box(append(head, black_box(&drafts), now, &signer).expect("good drafts"));
            }
        }));
    }
    let [bare, ours] = [bare, ours].map(|samples| percentile(&samples, 50) / (TIMES / GROUP) as f64);
    println!(
        "\nSealing {GROUP} receipts behind {MILLION}, µs: p50 of {} rounds in turns. bare: {GROUP} SHA-256 and Ed25519 \
         signatures.\n\n{:<10}{:>10}{:>9}\n{bare:<10.1}{ours:>10.1}{:>9.2}",
        ROUNDS * 10,
        "bare",
        "append",
        "ratio",
        ours / bare
    );
}

fn lines_of(sealed: &[receipts::Sealed]) -> Vec<String> {
    sealed.iter().map(|one| one.line.clone()).collect()
}

/// The canonical form, and reading it strictly.
fn canonical_form() {
    let lines = Receipts::new().lines(1_000);
    let typed: Vec<Receipt> = lines.iter().map(|line| parse(line)).collect();
    let (mut plain, mut parsed, mut canonical, mut strict) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS * 10 {
        parsed.push(micros(|| {
            for line in &lines {
                black_box(parse(black_box(line)));
            }
        }));
        plain.push(micros(|| {
            for receipt in &typed {
                black_box(serde_json::to_string(black_box(receipt)).expect("JSON"));
            }
        }));
        canonical.push(micros(|| {
            for receipt in &typed {
                black_box(jcs(black_box(receipt)).expect("canonical JSON"));
            }
        }));
        strict.push(micros(|| {
            let mut chain = Chain::new();
            for line in &lines {
                black_box(chain.push_unverified(black_box(line)).expect("the next line"));
            }
        }));
    }
    let [parsed, plain, canonical, strict] =
        [parsed, plain, canonical, strict].map(|samples| percentile(&samples, 50) / lines.len() as f64);
    println!(
        "\nForm, µs a receipt: p50 of {} rounds in turns. strict: a line read, held against its canonical form, hashed \
         and chained.\n\n{:<14}{:>16}{:>10}{:>12}{:>10}{:>26}\n{parsed:<14.2}{plain:>16.2}{canonical:>10.2}{:>12.2}\
         {strict:>10.2}{:>26.2}",
        ROUNDS * 10,
        "serde_json in",
        "serde_json out",
        "jcs",
        "jcs / out",
        "strict",
        "strict / (in and out)",
        canonical / plain,
        strict / (parsed + plain),
    );
}

fn parse(line: &str) -> Receipt {
    serde_json::from_str(line).expect("a receipt")
}

fn micros<T>(act: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    black_box(act());
    started.elapsed().as_secs_f64() * 1e6
}

fn signer() -> Signer {
    Signer::generate(SEED)
}

fn keys() -> KeyRing {
    KeyRing::from(signer().public_key())
}

fn sign(size: u64, root: Hash) -> String {
    let origin = Ledger::Customer(ACCOUNT).origin("governor.example");
    let checkpoint = Checkpoint { origin, size, root };
    checkpoint.sign(&signer()).expect("a checkpoint")
}

fn write_archive(out: impl Write, note: &str, lines: impl Iterator<Item = String>) {
    let public_key = signer().public_key();
    let input = ArchiveInput {
        opening: Opening {
            account_id: ACCOUNT,
            created_at: at(0),
            checkpoint: note,
            checkpoints: &[],
            public_key: &public_key,
            key_trail: &[],
        },
        lines: lines.map(Ok::<_, Infallible>),
        policies: &[(sha256_hex(POLICY), POLICY.to_vec())].into(),
    };
    archive::write(out, input).expect("an archive");
}

/// Milliseconds behind the first receipt.
fn at(milliseconds: u64) -> Timestamp {
    Timestamp::from_millisecond(START_MS + milliseconds as i64).expect("a time")
}

/// Numbers that look random and are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn uuid(&mut self) -> Uuid {
        let (high, low) = (self.next(), self.next());
        uuid::Builder::from_random_bytes(*Uuid::from_u64_pair(high, low).as_bytes()).into_uuid()
    }
}

/// The ledger of a busy tenant: mostly actions, some of them refused, routed or failed, and its concurrency going up and
/// down.
struct Receipts {
    head: Head,
    signer: Signer,
    random: Random,
    now: u64,
}

impl Receipts {
    fn new() -> Self {
        Self {
            head: Head::empty(),
            signer: signer(),
            random: Random(42),
            now: 0,
        }
    }

    fn lines(mut self, count: usize) -> Vec<String> {
        iter::repeat_with(|| self.group()).flatten().take(count).collect()
    }

    /// The next [`GROUP`] lines.
    fn group(&mut self) -> Vec<String> {
        let drafts = self.drafts();
        let appended = append(&self.head, &drafts, at(self.now), &self.signer).expect("good drafts");
        self.head = appended.head;
        lines_of(&appended.sealed)
    }

    fn drafts(&mut self) -> Vec<Draft> {
        self.now += 1_000 + self.random.below(4_000);
        (0..GROUP).map(|_| self.draft()).collect()
    }

    fn draft(&mut self) -> Draft {
        let payload = self.payload();
        Draft {
            receipt_id: self.random.uuid(),
            account_id: ACCOUNT.to_owned(),
            occurred_at: at(self.now - self.random.below(900)),
            duration_ms: self.random.below(3_000),
            policy_hash: Some(sha256_hex(POLICY)),
            payload,
        }
    }

    fn payload(&mut self) -> Payload {
        let (of_hundred, number) = (self.random.below(100), self.random.below(64));
        let action_id = self.random.uuid().to_string();
        let template = [
            "restart-service",
            "scale-out",
            "rotate-credentials",
            "clear-cache",
        ][(number % 4) as usize]
            .to_owned();
        let outcome = |code: &str| ActionOutcome {
            action_id: action_id.clone(),
            template: template.clone(),
            code: code.to_owned(),
        };
        let scaling = |quota_check: &str| Scaling {
            concurrency: Concurrency {
                previous: number,
                new: number + 1,
            },
            quota_check: quota_check.to_owned(),
            cost_delta_usd: UsdDelta::from_ten_thousandths(123_450 * number as i64).expect("an amount"),
        };
        match of_hundred {
            0 => Payload::EntitlementActive {
                entitlement_id: None,
                sku_id: "marketplace-sku-456".to_owned(),
                plan_type: "professional".to_owned(),
                region: "us-east-1".to_owned(),
                policy_version: "1.4.2".to_owned(),
                fsm_id: "governor-customer-123".to_owned(),
                quota: Quota {
                    monthly_actions: 1_000_000,
                    concurrent_actions: 64,
                },
                resources: Resources {
                    fsm_id: "governor-customer-123".to_owned(),
                    queue: "governor-signals-customer-123".to_owned(),
                    table: "governor-tenants".to_owned(),
                },
            },
            1 => Payload::PolicyUpgraded {
                policy_version: "1.4.2".to_owned(),
                previous_version: "1.4.1".to_owned(),
                governors_updated: number,
                governors_failed: 0,
                compatibility_check: "every request that was allowed is still allowed".to_owned(),
            },
            2..5 => Payload::GovernorScaled(scaling("within quota")),
            5 => Payload::QuotaExceeded(scaling("monthly actions used up")),
            6..16 => Payload::ActionRefused {
                action_id,
                template,
                code: "concurrency_limit".to_owned(),
                detail: Some("64 actions are in flight, the plan allows 64 \u{2014} try again".to_owned()),
                rules: vec!["quota-concurrent".to_owned(), "deny-by-default".to_owned()],
            },
            16..20 => Payload::ActionRouted(outcome("needs_approval")),
            20..23 => Payload::ActionTimeout {
                action_id,
                timeout_ms: 30_000,
            },
            23..27 => Payload::ActionFailed {
                action_id,
                error_code: "handler_unavailable".to_owned(),
                is_recoverable: true,
            },
            27 => Payload::ActionRolledBack {
                action_id,
                previous_action_receipt_id: self.random.uuid(),
                rollback_duration_ms: number,
            },
            28 => Payload::WebhookIgnored {
                provider: None,
                delivery_id: None,
                reason: "delivery \"msg_2aF\" was answered before".to_owned(),
            },
            _ => Payload::ActionComplete(outcome("done")),
        }
    }
}
