//! `baleen delta`: deltas made, pushed and explained without a daemon, as a build does it after it has pushed an image.
//!
//! T1  Everything is pulled into a store in a scratch folder, which is removed at the end; the machine's own store is not touched.
//! T2  Results go to the standard output, progress and errors to the standard error.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use baleen_engine::{
    DeltaHeader, DeltaLevel, Engine, EngineConfig, EngineError, LayerPhase, MadeDelta, MakeDelta, Progress,
    ProgressSender, PullRequest, RegistryAuth, progress_channel,
};
use baleen_oci::{Platform, Reference};

use crate::client::credentials;
use crate::client::text::units::size_of_four_digits;

const HELP: &str = "\
Usage: baleen delta make [OPTIONS] SOURCE [SOURCE...] TARGET
       baleen delta inspect [OPTIONS] TARGET|FILE

make     Make a delta from each source image to the target, for every platform that both have
inspect  List the deltas that a registry has for an image, or explain one that is in a file

Options:
      --push                    Push each delta beside the target
  -o, --output FILE             Write the delta to this file; one source and one platform
      --level fast|default      How hard to try
      --platform OS/ARCH        This platform alone
      --insecure-registry HOST  Speak plain HTTP or unverified TLS to it; may be repeated
      --scratch DIR             Where the images are unpacked meanwhile
      --config DIR              Where docker's config.json is (default ~/.docker)
  -q, --quiet                   No progress
      --help                    Print this

Images are named in full: REGISTRY/NAME:TAG. Runs as root, since layers are unpacked with their owners.
";

#[derive(Default)]
struct Options {
    push: bool,
    output: Option<PathBuf>,
    level: DeltaLevel,
    platform: Option<Platform>,
    insecure: Vec<String>,
    scratch: Option<PathBuf>,
    quiet: bool,
    names: Vec<String>,
}

/// Runs `baleen delta` with what follows that word.
pub(crate) fn run(arguments: Vec<String>) -> ExitCode {
    let verb = arguments.first().cloned().unwrap_or_default();
    let options = match parse(arguments.into_iter().skip(1)) {
        Ok(Some(options)) if verb != "--help" && verb != "-h" => options,
        Ok(_) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => return usage(&problem),
    };
    let done = match (verb.as_str(), options.names.len()) {
        ("make", 2..) => with_engine(&options, async |engine| make(engine, &options).await),
        ("make", _) => return usage("make needs a source and a target"),
        ("inspect", 1) if Path::new(&options.names[0]).is_file() => explain(Path::new(&options.names[0])),
        ("inspect", 1) => with_engine(&options, async |engine| inspect(engine, &options).await),
        ("inspect", _) => return usage("inspect needs one image or file"),
        _ => return usage("the command is make or inspect"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("baleen delta: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("baleen delta: {problem}; `baleen delta --help` tells more.");
    ExitCode::from(2)
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    while let Some(argument) = arguments.next() {
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name.to_owned(), Some(value.to_owned())),
            _ => (argument, None),
        };
        let mut value =
            |inline: Option<String>| inline.or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "-o" | "--output" => options.output = Some(value(inline)?.into()),
            "--level" => {
                options.level = match value(inline)?.as_str() {
                    "fast" => DeltaLevel::Fast,
                    "default" => DeltaLevel::Default,
                    other => return Err(format!("there is no level {other:?}")),
                }
            }
            "--platform" => {
                options.platform = Some(value(inline)?.parse::<Platform>().map_err(|error| error.to_string())?);
            }
            "--insecure-registry" => options.insecure.push(value(inline)?),
            "--scratch" => options.scratch = Some(value(inline)?.into()),
            "--config" => credentials::set_folder(value(inline)?),
            _ if inline.is_some() => return Err(format!("{name} takes no value")),
            "--push" => options.push = true,
            "-q" | "--quiet" => options.quiet = true,
            "--help" | "-h" => return Ok(None),
            name if name.starts_with('-') => return Err(format!("unknown option {name:?}")),
            name => options.names.push(name.to_owned()),
        }
    }
    Ok(Some(options))
}

/// A folder that is removed with all that is in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("baleen delta: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Runs something with an engine in a scratch folder (T1).
fn with_engine(options: &Options, verb: impl AsyncFnOnce(&Arc<Engine>) -> Result<(), String>) -> Result<(), String> {
    let folder = options.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch(folder.join(format!("baleen-delta-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0).map_err(|error| format!("cannot make {}: {error}", scratch.0.display()))?;
    let binary = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut config = EngineConfig::at(scratch.0.join("root"), scratch.0.join("run"), binary);
    config.insecure_registries.clone_from(&options.insecure);
    config.network.bridge = None;
    // What is made must not depend on other deltas.
    config.deltas = false;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(async {
        let engine = Engine::open(config).await.map_err(told)?;
        let done = verb(&engine).await;
        let closed = engine.close().await.map_err(told);
        done.and(closed)
    })
}

fn told(error: EngineError) -> String {
    error.chain()
}

fn reference(name: &str) -> Result<Reference, String> {
    Reference::parse(name).map_err(|error| format!("{name}: {error}"))
}

fn auth(name: &str) -> RegistryAuth {
    RegistryAuth::from_header(&credentials::header(name))
}

async fn make(engine: &Arc<Engine>, options: &Options) -> Result<(), String> {
    let (target, sources) = options.names.split_last().expect("counted by the caller");
    let platforms = platforms(engine, target, options).await?;
    if options.output.is_some() && (sources.len() > 1 || platforms.len() > 1) {
        return Err("--output is for one delta: name one source, and the platform".to_owned());
    }
    let mut rows = Vec::new();
    for platform in &platforms {
        pull(engine, target, platform, options).await?;
        for source in sources {
            let available = self::platforms(engine, source, &Options::default()).await?;
            let has_it = platform.as_ref().is_none_or(|wanted| {
                available.iter().flatten().any(|other| other.is_same(wanted)) || available == [None]
            });
            if !has_it {
                eprintln!("{source} is not there for {}", platform.as_ref().expect("it was wanted"));
                continue;
            }
            pull(engine, source, platform, options).await?;
            let made = make_one(engine, source, target, options).await?;
            rows.push(row(source, platform.as_ref(), &made));
        }
    }
    if rows.is_empty() {
        return Err("no source has a platform of the target".to_owned());
    }
    print(&["SOURCE", "PLATFORM", "FULL PULL", "DELTA", "RATIO", "TIME", "MEMORY", "TAG"], &rows)
}

/// The platforms of an image; `None` stands for the only one.
async fn platforms(engine: &Arc<Engine>, name: &str, options: &Options) -> Result<Vec<Option<Platform>>, String> {
    if let Some(platform) = &options.platform {
        return Ok(vec![Some(platform.clone())]);
    }
    let found = engine.distribution(&reference(name)?, &auth(name)).await.map_err(told)?;
    let real = found.platforms.into_iter().filter(|platform| platform.os != "unknown");
    let all: Vec<Option<Platform>> = real.map(Some).collect();
    Ok(if all.len() < 2 { vec![None] } else { all })
}

async fn pull(engine: &Arc<Engine>, name: &str, platform: &Option<Platform>, options: &Options) -> Result<(), String> {
    if !options.quiet {
        eprintln!("Pulling {name}");
    }
    let mut platform = platform.clone();
    if platform.is_none() {
        // Of an image for another machine the platform is its own.
        let found = engine.distribution(&reference(name)?, &auth(name)).await.map_err(told)?;
        platform = found.platforms.into_iter().find(|platform| platform.os != "unknown");
    }
    let request = PullRequest { reference: reference(name)?, platform, auth: auth(name) };
    let (sender, shown) = show(true);
    let pulled = engine.pull(request, sender).await;
    let _ = shown.await;
    pulled.map(drop).map_err(told)
}

async fn make_one(engine: &Arc<Engine>, source: &str, target: &str, options: &Options) -> Result<MadeDelta, String> {
    let file = match &options.output {
        Some(path) => Some(File::create(path).map_err(|error| format!("cannot make {}: {error}", path.display()))?),
        None => None,
    };
    let request = MakeDelta {
        source: source.to_owned(),
        target: target.to_owned(),
        push_to: if options.push { Some(reference(target)?.repository().clone()) } else { None },
        file,
        level: options.level,
        auth: auth(target),
    };
    let (sender, shown) = show(options.quiet);
    let made = engine.make_delta(request, sender).await;
    let _ = shown.await;
    made.map_err(told)
}

/// Shows progress on the standard error: lines, and a count that moves on a terminal.
fn show(quiet: bool) -> (ProgressSender, tokio::task::JoinHandle<()>) {
    let (sender, mut progress) = progress_channel();
    let moves = io::stderr().is_terminal();
    let shown = tokio::spawn(async move {
        while let Some(message) = progress.recv().await {
            let text = match message {
                _ if quiet => continue,
                Progress::Line(text) => format!("{text}\n"),
                Progress::Layer { id, phase: LayerPhase::ComputingDelta { current_bytes, total_bytes } } if moves => {
                    format!("\r{id}: {} of {}  \r", size(current_bytes), size(total_bytes))
                }
                Progress::Layer { id, phase: LayerPhase::DeltaComplete } => format!("{id}: Delta complete\n"),
                Progress::Layer { id, phase: LayerPhase::SkippingCommonLayer } => {
                    format!("{id}: Skipping common layer\n")
                }
                _ => continue,
            };
            let _ = io::stderr().write_all(text.as_bytes());
        }
    });
    (sender, shown)
}

fn size(bytes: u64) -> String {
    size_of_four_digits(i64::try_from(bytes).unwrap_or(i64::MAX))
}

fn row(source: &str, platform: Option<&Platform>, made: &MadeDelta) -> Vec<String> {
    let ratio = made.facts.size_bytes as f64 / made.in_full_bytes.max(1) as f64;
    vec![
        source.to_owned(),
        platform.map_or_else(|| "-".to_owned(), Platform::to_string),
        size(made.in_full_bytes),
        size(made.facts.size_bytes),
        format!("{ratio:.4}"),
        format!("{:.1}s", made.time.as_secs_f64()),
        size(made.facts.memory_bytes),
        made.digest.map_or_else(|| "-".to_owned(), |_| made.tag.clone()),
    ]
}

async fn inspect(engine: &Arc<Engine>, options: &Options) -> Result<(), String> {
    let name = &options.names[0];
    let mut rows = Vec::new();
    for platform in platforms(engine, name, options).await? {
        let offered = engine.deltas_of(&reference(name)?, platform.as_ref(), &auth(name)).await.map_err(told)?;
        for delta in offered {
            let configs = delta.facts.source_configs.iter().map(|config| config.short());
            rows.push(vec![
                delta.digest.short(),
                platform.as_ref().map_or_else(|| "-".to_owned(), Platform::to_string),
                configs.collect::<Vec<_>>().join(","),
                delta.facts.source_layers.len().to_string(),
                delta.facts.target_layers.len().to_string(),
                size(delta.facts.size_bytes),
                size(delta.facts.memory_bytes),
            ]);
        }
    }
    print(&["DELTA", "PLATFORM", "FROM IMAGE", "READS LAYERS", "MAKES LAYERS", "SIZE", "MEMORY"], &rows)
}

/// Explains a delta in a file.
fn explain(path: &Path) -> Result<(), String> {
    let failed = |error: &dyn std::error::Error| format!("{}: {}", path.display(), crate::chain(error));
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let header = DeltaHeader::read(&mut file).map_err(|error| failed(&error))?;
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    let mut text = format!(
        "Makes image   {}\nMemory        {}\nLength        {} bytes",
        header.target_config,
        size(header.memory_bytes),
        header.delta_bytes()
    );
    if length != header.delta_bytes() {
        text.push_str(&format!(" (the file has {length})"));
    }
    text.push('\n');
    for source in &header.sources {
        text.push_str(&format!("Reads layer   {source}\n"));
    }
    print!("{text}");
    let rows = header.layers.iter().map(|layer| {
        let frames = &header.frames[layer.first_frame..layer.first_frame + layer.frame_count];
        let packed: u64 = frames.iter().map(|frame| u64::from(frame.packed_bytes)).sum();
        vec![layer.diff_id.to_string(), size(layer.tar_size_bytes), size(packed), layer.frame_count.to_string()]
    });
    print(&["MAKES LAYER", "TAR", "DELTA", "FRAMES"], &rows.collect::<Vec<_>>())
}

/// Prints a table with columns as wide as their longest cell.
fn print(head: &[&str], rows: &[Vec<String>]) -> Result<(), String> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::len);
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let line = |cells: &[&str]| {
        let padded = cells.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    let mut text = line(head);
    for row in rows {
        text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot write: {error}"))
}
