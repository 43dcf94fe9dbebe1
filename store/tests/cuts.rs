//! The store's verbs on a simulated disk: the power is cut before every step, every step fails once, the disk gets full
//! and read-only at each, every barrier is left out once, and recovery is cut again.

use std::sync::{Arc, OnceLock};

use baleen_fault_injection::{Exploration, Journal, Scenario, SimulatedDisk, Subsets, explore, sealed};
use baleen_oci::{DiffId, Digest, ImageId};
use baleen_store::{
    Access, ContainerFact, Desired, Handle, ImageFact, LayerFact, LayerKey, Opened, Owner, Partial, PullFact,
    PullLayer, Store, StoreError, TagFact, Txn, VolumeFact, read_file,
};

/// What a user was told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ack {
    Store,
    Pull(&'static str),
    Layer(&'static str),
    NoLayer(&'static str),
    Image(&'static str),
    NoImage(&'static str),
    Tag(&'static str, &'static str),
    NoTag(&'static str),
    Container(&'static str, &'static str),
    NoContainer(&'static str),
    /// A checkpoint over the first so many parts of a layer; 0 is its removal.
    Part(u8),
    /// From here on the last checkpoint may be there, or an earlier one, or none.
    Clearing,
    Volume(&'static str),
    NoVolume(&'static str),
}

type Work = fn(&Store, &mut dyn FnMut(Ack)) -> Result<(), StoreError>;

struct Verb {
    name: &'static str,
    prepare: fn(&Store) -> Result<(), StoreError>,
    /// Prepares nothing, so that the workload makes the store too.
    from_nothing: bool,
    work: Work,
    /// The most acknowledgements that one commit of it is followed by.
    acks_a_commit: usize,
    promises: OnceLock<Vec<Ack>>,
}

impl Verb {
    /// All that the workload acknowledges when nothing goes wrong.
    fn promises(&self) -> &[Ack] {
        self.promises.get_or_init(|| {
            let store = open(&SimulatedDisk::new()).expect("a store");
            (self.prepare)(&store).expect("what it needs");
            let mut promises = Vec::new();
            (self.work)(&store, &mut |ack| promises.push(ack)).expect("the work");
            promises
        })
    }
}

/// An opened store, with what it told right after its opening.
struct Recovered {
    store: Store,
    facts: Vec<String>,
    missing: Vec<String>,
    damage: Vec<String>,
    foreign_volumes: Vec<String>,
    created: bool,
    /// Whether something was in the trash before: what met an error was given up, its checkpoint too.
    given_up: bool,
}

fn open(disk: &SimulatedDisk) -> Result<Store, String> {
    let (store, opened) = Store::open(Arc::new(disk.clone()), *b"a store of tests").map_err(chain)?;
    assert_eq!(opened.missing, Vec::<String>::new(), "an opening misses objects");
    assert_eq!(opened.damage, Vec::<String>::new(), "an opening finds damage");
    Ok(store)
}

fn chain(error: StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

impl Scenario for Verb {
    type Ack = Ack;
    type Opened = Recovered;

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn prepare(&self, disk: &SimulatedDisk) -> Result<(), String> {
        if self.from_nothing {
            return Ok(());
        }
        (self.prepare)(&open(disk)?).map_err(chain)
    }

    fn workload(&self, disk: &SimulatedDisk, journal: &mut Journal<Ack>) -> Result<(), String> {
        let store = open(disk)?;
        (self.work)(&store, &mut |ack| journal.acknowledge(ack)).map_err(chain)
    }

    fn recover(&self, disk: &SimulatedDisk) -> Result<Recovered, String> {
        let (store, opened) = Store::open(Arc::new(disk.clone()), *b"a store of tests").map_err(chain)?;
        let facts = facts(&store);
        let Opened { missing, damage, foreign_volumes, created, discarded, .. } = opened;
        let trash = store.owners().map_err(chain)?.into_iter().filter(|owned| owned.owner == Owner::Trash).count();
        let given_up = trash > discarded.len();
        Ok(Recovered { store, facts, missing, damage, foreign_volumes, created, given_up })
    }

    fn judge(&self, _: &SimulatedDisk, recovered: &Recovered, acks: &[Ack]) -> Result<(), String> {
        let Recovered { store, missing, damage, foreign_volumes, .. } = recovered;
        // What a cut leaves is no damage, and a rescue that hides one would hide a barrier that is missing.
        if !damage.is_empty() {
            return Err(format!("a cut looks like damage: {damage:?}"));
        }
        if !missing.is_empty() {
            return Err(format!("{missing:?} are recorded and not there"));
        }
        if recovered.created && acks.contains(&Ack::Store) {
            return Err("the store is gone".to_owned());
        }
        // A removal takes the folder away for good, answered or not.
        if !foreign_volumes.is_empty() {
            return Err(format!("{foreign_volumes:?} were removed and their folders stand"));
        }
        whole(store)?;
        // What was under way when the power went may have happened: then the next promises hold already.
        let promises = self.promises();
        let under_way = acks.len()..=promises.len().min(acks.len() + self.acks_a_commit);
        let excused = |ack: &&Ack| recovered.given_up && matches!(ack, Ack::Part(_));
        let kept = |acks: &[Ack]| kept(store, &acks.iter().filter(|ack| !excused(ack)).cloned().collect::<Vec<_>>());
        let begun = |&(index, ack): &(usize, &Ack)| index < acks.len() || *ack != Ack::Clearing;
        let promised = |count| -> Vec<Ack> {
            promises.iter().take(count).enumerate().filter(begun).map(|(_, ack)| ack.clone()).collect()
        };
        let held: Vec<_> = under_way.map(|count| kept(&promised(count))).collect();
        if let Some(Err(broken)) = held.first()
            && held.iter().all(Result::is_err)
        {
            return Err(broken.clone());
        }
        // It can be done again, and then everything that it promises is true.
        let done = match (self.work)(store, &mut |_| {}) {
            // The disk reported an error of this boot once more; the caller's second try is by a sync of each file.
            Err(StoreError::StagingDropped) => (self.work)(store, &mut |_| {}),
            other => other,
        };
        done.map_err(|error| format!("done again: {}", chain(error)))?;
        whole(store).and_then(|()| kept(promises)).map_err(|error| format!("after it was done again: {error}"))?;
        store.empty_trash(u64::MAX).map_err(|error| format!("the trash: {}", chain(error)))?;
        Ok(())
    }

    fn facts(&self, _: &SimulatedDisk, recovered: &Recovered) -> Vec<String> {
        recovered.facts.clone()
    }
}

fn facts(store: &Store) -> Vec<String> {
    let mut facts: Vec<String> = store.images().iter().map(|image| format!("{image:?}")).collect();
    facts.extend(store.tags().iter().map(|tag| format!("{tag:?}")));
    facts.extend(store.layers().iter().map(|layer| format!("{layer:?}")));
    facts.extend(store.blobs().iter().map(|blob| format!("{blob:?}")));
    facts.extend(store.containers().iter().map(|container| format!("{container:?}")));
    facts.extend(store.volumes().iter().map(|volume| format!("{volume:?}")));
    facts.extend(store.pulls().iter().map(|pull| format!("{pull:?}")));
    facts
}

/// P2: everything that the store names is there with all its content, and nothing lies around.
fn whole(store: &Store) -> Result<(), String> {
    for tag in store.tags() {
        store.image(&tag.image).ok_or(format!("{} names no image", tag.name))?;
    }
    for image in store.images() {
        store.read_blob(&image.id.0).map_err(chain)?;
        store.read_blob(&image.manifest.ok_or("an image without a manifest")?).map_err(chain)?;
        for key in &image.layers {
            store.layer(key).ok_or(format!("layer {key} of an image is not there"))?;
        }
    }
    for blob in store.blobs() {
        store.read_blob(&blob.digest).map_err(chain)?;
    }
    for layer in store.layers() {
        check_layer(store, &layer.key).map_err(|error| format!("layer {}: {error}", layer.key))?;
    }
    for container in store.containers() {
        check_container(store, &container).map_err(|error| format!("container {}: {error}", container.name))?;
    }
    for volume in store.volumes() {
        check_volume(store, &volume).map_err(|error| format!("volume {}: {error}", volume.name))?;
    }
    let nobodys = |owned: &baleen_store::Owned| owned.owner == Owner::Nobody;
    match store.owners().map_err(chain)?.into_iter().find(nobodys) {
        Some(owned) => Err(format!("{} belongs to nobody", owned.path)),
        None => Ok(()),
    }
}

/// P1: what was acknowledged last about each thing is so.
fn kept(store: &Store, acks: &[Ack]) -> Result<(), String> {
    for (index, ack) in acks.iter().enumerate() {
        let later = &acks[index + 1..];
        let (holds, overruled) = match *ack {
            Ack::Store => (true, false),
            Ack::Pull(config) => {
                let begun = store.pulls().iter().any(|pull| pull.manifest == manifest(config));
                (begun, later.contains(&Ack::Image(config)))
            }
            Ack::Layer(text) => (store.layer(&key(text)).is_some(), later.contains(&Ack::NoLayer(text))),
            Ack::NoLayer(text) => (store.layer(&key(text)).is_none(), later.contains(&Ack::Layer(text))),
            Ack::Image(config) => (store.image(&image(config)).is_some(), later.contains(&Ack::NoImage(config))),
            Ack::NoImage(config) => (store.image(&image(config)).is_none(), later.contains(&Ack::Image(config))),
            Ack::Tag(name, config) => {
                let other = |ack: &Ack| matches!(ack, Ack::Tag(again, _) | Ack::NoTag(again) if *again == name);
                (store.tag(name).map(|tag| tag.image) == Some(image(config)), later.iter().any(other))
            }
            Ack::NoTag(name) => {
                let other = |ack: &Ack| matches!(ack, Ack::Tag(again, _) if *again == name);
                (store.tag(name).is_none(), later.iter().any(other))
            }
            Ack::Container(id, name) => {
                let other =
                    |ack: &Ack| matches!(ack, Ack::Container(again, _) | Ack::NoContainer(again) if *again == id);
                (store.container(id).is_some_and(|fact| fact.name == name), later.iter().any(other))
            }
            Ack::Clearing => (true, false),
            Ack::Part(parts) => {
                let later = later.iter().any(|ack| matches!(ack, Ack::Part(_) | Ack::Clearing));
                (
                    parts_extracted(store).is_none_or(|done| done >= parts && (parts > 0 || !matches!(done, 1 | 2))),
                    later,
                )
            }
            Ack::NoContainer(id) => {
                let other = |ack: &Ack| matches!(ack, Ack::Container(again, _) if *again == id);
                (store.container(id).is_none(), later.iter().any(other))
            }
            Ack::Volume(name) => (store.volume(name).is_some(), later.contains(&Ack::NoVolume(name))),
            // A name that is free stays free: nothing is left where it was.
            Ack::NoVolume(name) => {
                let stands = matches!(store.volume_dir(name), Err(StoreError::VolumeMissing { .. }));
                (stands && store.volume(name).is_none(), later.contains(&Ack::Volume(name)))
            }
        };
        if !holds && !overruled {
            return Err(format!("{ack:?} was acknowledged and is not so"));
        }
    }
    Ok(())
}

fn check_layer(store: &Store, key: &LayerKey) -> Result<(), String> {
    let disk = store.disk();
    let text = ["base", "middle", "top"].into_iter().find(|text| self::key(text) == *key).ok_or("unknown")?;
    let read = || -> std::io::Result<bool> {
        let dir = store.layer_dir(key).map_err(std::io::Error::other)?;
        let recipe = read_file(disk.as_ref(), &disk.open_file(&dir, b"recipe", Access::Read)?, 100)?;
        let fs = disk.open_dir(&dir, b"fs")?;
        let etc = disk.open_dir(&fs, b"etc")?;
        let file = disk.open_file(&etc, b"file", Access::Read)?;
        let mode = disk.metadata(&file)?.mode;
        let bytes = read_file(disk.as_ref(), &file, 1 << 20)?;
        let is_whole = bytes == content(text) && mode == 0o640 && recipe == text.as_bytes();
        Ok(is_whole && disk.read_link(&fs, b"link")? == b"etc/file")
    };
    match read().map_err(|error| error.to_string())? {
        true => Ok(()),
        false => Err("is not as it was extracted".to_owned()),
    }
}

fn check_container(store: &Store, fact: &ContainerFact) -> Result<(), String> {
    let disk = store.disk();
    store.image(&fact.image).ok_or("has no image")?;
    let read = || -> std::io::Result<Vec<u8>> {
        let dir = store.container_dir(&fact.id).map_err(std::io::Error::other)?;
        disk.open_dir(&dir, b"upper")?;
        disk.open_dir(&dir, b"work")?;
        read_file(disk.as_ref(), &disk.open_file(&dir, b"config.json", Access::Read)?, 1 << 20)
    };
    match read().map_err(|error| error.to_string())? {
        config if config == fact.id.as_bytes() => Ok(()),
        _ => Err("has another configuration".to_owned()),
    }
}

fn check_volume(store: &Store, fact: &VolumeFact) -> Result<(), String> {
    let disk = store.disk();
    let read = || -> std::io::Result<Vec<u8>> {
        let dir = store.volume_dir(&fact.name).map_err(std::io::Error::other)?;
        disk.open_dir(&dir, b"_data")?;
        read_file(disk.as_ref(), &disk.open_file(&dir, b"volume.json", Access::Read)?, 1 << 20)
    };
    match read().map_err(|error| error.to_string())? {
        description if description == fact.name.as_bytes() => Ok(()),
        _ => Err("has another description".to_owned()),
    }
}

// What the workloads do. Each can be done again whatever is there.

fn digest(text: &str) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

fn image(config: &str) -> ImageId {
    ImageId(digest(config))
}

fn manifest(config: &str) -> Digest {
    digest(&format!("manifest of {config}"))
}

fn key(text: &str) -> LayerKey {
    LayerKey::new(DiffId(digest(text)))
}

/// Larger than a block, so that it can tear.
fn content(text: &str) -> Vec<u8> {
    text.bytes().cycle().take(9000).collect()
}

fn io(error: std::io::Error) -> StoreError {
    StoreError::Io { action: "extract", path: "a layer".to_owned(), source: error }
}

fn extract_layer(store: &Store, text: &str) -> Result<(Partial, LayerFact), StoreError> {
    let blob = digest(&format!("blob of {text}"));
    let partial = store.begin_partial(&blob)?;
    let disk = store.disk().clone();
    let extract = || -> std::io::Result<()> {
        disk.create_dir(partial.dir(), b"fs", 0o755)?;
        let fs = disk.open_dir(partial.dir(), b"fs")?;
        disk.create_dir(&fs, b"etc", 0o755)?;
        let file = disk.create_file(&disk.open_dir(&fs, b"etc")?, b"file", 0o600)?;
        disk.write_at(&file, &content(text), 0)?;
        disk.set_mode(&file, 0o640)?;
        disk.create_symlink(&fs, b"link", b"etc/file")?;
        let recipe = disk.create_file(partial.dir(), b"recipe", 0o600)?;
        disk.write_at(&recipe, text.as_bytes(), 0)
    };
    extract().map_err(io)?;
    Ok((partial, layer_fact(text, blob)))
}

fn add_layer(store: &Store, text: &'static str, ack: &mut dyn FnMut(Ack)) -> Result<(), StoreError> {
    if store.layer(&key(text)).is_none() {
        let (partial, fact) = extract_layer(store, text)?;
        let mut txn = store.begin()?;
        txn.stage_layer(partial, fact);
        txn.commit()?;
    }
    ack(Ack::Layer(text));
    Ok(())
}

fn begin_pull(store: &Store, config: &str, layers: &[&str]) -> Result<(), StoreError> {
    let pulled =
        |text: &&str| PullLayer { blob: digest(&format!("blob of {text}")), blob_size_bytes: 10, key: key(text) };
    let layers = layers.iter().map(pulled).collect();
    store.begin_pull(PullFact { manifest: manifest(config), layers }).map(drop)
}

/// Two layers that finish together, with their image: one barrier and one record for all.
fn pull_at_once(store: &Store, ack: &mut dyn FnMut(Ack)) -> Result<(), StoreError> {
    let texts = ["base", "middle"];
    begin_pull(store, "one", &texts)?;
    ack(Ack::Pull("one"));
    let mut extracted = Vec::new();
    for text in texts.into_iter().filter(|text| store.layer(&key(text)).is_none()) {
        extracted.push(extract_layer(store, text)?);
    }
    let mut txn = store.begin()?;
    for (partial, fact) in extracted {
        txn.stage_layer(partial, fact);
    }
    stage_image(&mut txn, "one", &texts, "app:1")?;
    txn.commit()?;
    for text in texts {
        ack(Ack::Layer(text));
    }
    ack(Ack::Image("one"));
    ack(Ack::Tag("app:1", "one"));
    Ok(())
}

/// The parts that the checkpoint of `base` speaks of; `None` once it is a layer.
fn parts_extracted(store: &Store) -> Option<u8> {
    let partial = store.begin_partial(&digest("blob of base")).ok()?;
    let parts = partial.checkpoint().map_or(0, |checkpoint| checkpoint.state[0]);
    partial.keep();
    Some(parts)
}

/// Extracts `base` in three parts with a checkpoint after each, from where an earlier attempt was cut.
fn add_layer_in_parts(store: &Store, ack: &mut dyn FnMut(Ack)) -> Result<(), StoreError> {
    let blob = digest("blob of base");
    let pulled = PullLayer { blob, blob_size_bytes: 10, key: key("base") };
    store.begin_pull(PullFact { manifest: manifest("one"), layers: vec![pulled] })?;
    if store.layer(&key("base")).is_some() {
        ack(Ack::Layer("base"));
        return Ok(());
    }
    let partial = store.begin_partial(&blob)?;
    let checkpoints = partial.checkpoints();
    let (disk, dir) = (store.disk().clone(), partial.dir());
    let done = partial.checkpoint().map_or(0, |checkpoint| checkpoint.state[0]);
    let anew = |dir: &Handle, name: &[u8]| match disk.remove_file(dir, name) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    };
    for part in done..3 {
        let extract = || -> std::io::Result<()> {
            if part == 0 {
                disk.create_dir(dir, b"fs", 0o755)?;
                return disk.create_dir(&disk.open_dir(dir, b"fs")?, b"etc", 0o755);
            }
            let fs = disk.open_dir(dir, b"fs")?;
            if part == 1 {
                let etc = disk.open_dir(&fs, b"etc")?;
                anew(&etc, b"file")?;
                let file = disk.create_file(&etc, b"file", 0o600)?;
                disk.write_at(&file, &content("base"), 0)?;
                return disk.set_mode(&file, 0o640);
            }
            anew(&fs, b"link")?;
            disk.create_symlink(&fs, b"link", b"etc/file")
        };
        extract().map_err(io)?;
        if part == 2 {
            // As before the replacement of something that is covered already.
            ack(Ack::Clearing);
            checkpoints.clear()?;
            ack(Ack::Part(0));
        }
        checkpoints.save(&[part + 1; 5000], 9000)?;
        ack(Ack::Part(part + 1));
    }
    let finish = || {
        anew(dir, b"recipe")?;
        let recipe = disk.create_file(dir, b"recipe", 0o600)?;
        disk.write_at(&recipe, b"base", 0)
    };
    finish().map_err(io)?;
    let mut txn = store.begin()?;
    txn.stage_layer(partial, layer_fact("base", blob));
    txn.commit()?;
    ack(Ack::Layer("base"));
    Ok(())
}

fn layer_fact(text: &str, blob: Digest) -> LayerFact {
    LayerFact {
        key: key(text),
        blob,
        blob_size_bytes: 10,
        tar_size_bytes: 20,
        unpacked_size_bytes: 9000,
        entries: 3,
        recipe_size_bytes: 4,
        implied_directories: false,
    }
}

fn stage_image(txn: &mut Txn, config: &str, layers: &[&str], tag: &str) -> Result<(), StoreError> {
    let manifest = format!("manifest of {config}");
    txn.stage_blob(&digest(config), config.as_bytes())?;
    txn.stage_blob(&digest(&manifest), manifest.as_bytes())?;
    let layers = layers.iter().map(|text| key(text)).collect();
    txn.store_image(ImageFact { id: image(config), manifest: Some(digest(&manifest)), layers });
    txn.set_tag(TagFact { name: tag.to_owned(), image: image(config), set_at_seconds: 5 })?;
    txn.end_pull(&digest(&manifest));
    Ok(())
}

fn add_image(
    store: &Store,
    config: &'static str,
    layers: &[&'static str],
    tag: &'static str,
    ack: &mut dyn FnMut(Ack),
) -> Result<(), StoreError> {
    let mut txn = store.begin()?;
    stage_image(&mut txn, config, layers, tag)?;
    txn.commit()?;
    ack(Ack::Image(config));
    ack(Ack::Tag(tag, config));
    Ok(())
}

fn pull(
    store: &Store,
    config: &'static str,
    layers: &[&'static str],
    tag: &'static str,
    ack: &mut dyn FnMut(Ack),
) -> Result<(), StoreError> {
    begin_pull(store, config, layers)?;
    ack(Ack::Pull(config));
    for text in layers {
        add_layer(store, text, ack)?;
    }
    add_image(store, config, layers, tag, ack)
}

fn add_container(
    store: &Store,
    id: &'static str,
    name: &'static str,
    config: &str,
    ack: &mut dyn FnMut(Ack),
) -> Result<(), StoreError> {
    if store.container(id).is_none() {
        let mut txn = store.begin()?;
        let fact =
            ContainerFact { id: id.to_owned(), name: name.to_owned(), image: image(config), desired: Desired::Created };
        txn.stage_container(fact, |dir| {
            dir.file("config.json", 0o600, id.as_bytes())?;
            dir.dir("upper", 0o755, 0, 0)?;
            dir.dir("work", 0o700, 0, 0)
        })?;
        txn.commit()?;
    }
    ack(Ack::Container(id, name));
    Ok(())
}

fn add_volume(store: &Store, name: &'static str, ack: &mut dyn FnMut(Ack)) -> Result<(), StoreError> {
    if store.volume(name).is_none() {
        let mut txn = store.begin()?;
        txn.stage_volume(VolumeFact { name: name.to_owned() }, name.as_bytes())?;
        txn.commit()?;
    }
    ack(Ack::Volume(name));
    Ok(())
}

fn unless_missing(result: Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Err(
            StoreError::TagMissing { .. }
            | StoreError::ImageMissing { .. }
            | StoreError::ContainerMissing { .. }
            | StoreError::VolumeMissing { .. },
        ) => Ok(()),
        other => other,
    }
}

fn two_images(store: &Store) -> Result<(), StoreError> {
    pull(store, "one", &["base", "middle"], "app:1", &mut |_| {})?;
    pull(store, "two", &["base", "top"], "app:2", &mut |_| {})?;
    add_container(store, "c0", "old", "two", &mut |_| {})?;
    store.empty_trash(u64::MAX).map(drop)
}

fn nothing(_: &Store) -> Result<(), StoreError> {
    Ok(())
}

fn verbs() -> Vec<Verb> {
    let promises = OnceLock::new;
    vec![
        Verb {
            name: "create store",
            prepare: nothing,
            from_nothing: true,
            acks_a_commit: 3,
            promises: promises(),
            work: |_, ack| {
                ack(Ack::Store);
                Ok(())
            },
        },
        Verb {
            name: "layer",
            prepare: nothing,
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                let pulled = PullLayer { blob: digest("blob of base"), blob_size_bytes: 10, key: key("base") };
                store.begin_pull(PullFact { manifest: digest("manifest of one"), layers: vec![pulled] })?;
                ack(Ack::Pull("one"));
                add_layer(store, "base", ack)
            },
        },
        Verb {
            name: "layer in parts",
            prepare: nothing,
            from_nothing: false,
            acks_a_commit: 1,
            promises: promises(),
            work: add_layer_in_parts,
        },
        Verb {
            name: "image",
            prepare: nothing,
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| pull(store, "one", &["base", "middle"], "app:1", ack),
        },
        Verb {
            name: "image at once",
            prepare: nothing,
            from_nothing: false,
            acks_a_commit: 4,
            promises: promises(),
            work: pull_at_once,
        },
        Verb {
            name: "tag",
            prepare: two_images,
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                for (name, config) in [("app:1", "two"), ("new:1", "one")] {
                    let mut txn = store.begin()?;
                    txn.set_tag(TagFact { name: name.to_owned(), image: image(config), set_at_seconds: 6 })?;
                    txn.commit()?;
                    ack(Ack::Tag(name, config));
                }
                Ok(())
            },
        },
        Verb {
            name: "untag",
            prepare: two_images,
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                unless_missing(store.remove_tag("app:1"))?;
                ack(Ack::NoTag("app:1"));
                Ok(())
            },
        },
        Verb {
            name: "container",
            prepare: two_images,
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                add_container(store, "c1", "web", "one", ack)?;
                let renamed = |name: &str, desired| ContainerFact {
                    id: "c1".to_owned(),
                    name: name.to_owned(),
                    image: image("one"),
                    desired,
                };
                store.change_container(renamed("db", Desired::Running))?;
                ack(Ack::Container("c1", "db"));
                store.remove_container("c1")?;
                ack(Ack::NoContainer("c1"));
                add_container(store, "c1", "db", "one", ack)
            },
        },
        Verb {
            name: "volume",
            prepare: |store| add_volume(store, "old", &mut |_| {}),
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                let remove = |name, ack: &mut dyn FnMut(Ack)| {
                    unless_missing(store.remove_volume(name))?;
                    ack(Ack::NoVolume(name));
                    Ok::<(), StoreError>(())
                };
                remove("old", ack)?;
                // A record that is no removal's: from here on the log alone would not say that `old` was given up.
                add_volume(store, "data", ack)?;
                remove("data", ack)?;
                store.empty_trash(u64::MAX)?;
                // The last fact is gone, so the log has begun anew: the name is free nevertheless.
                add_volume(store, "data", ack)
            },
        },
        Verb {
            name: "remove",
            prepare: two_images,
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                unless_missing(store.remove_image(&image("one")).map(drop))?;
                ack(Ack::NoImage("one"));
                ack(Ack::NoTag("app:1"));
                ack(Ack::NoLayer("middle"));
                store.empty_trash(u64::MAX)?;
                pull(store, "one", &["base", "middle"], "app:1", ack)
            },
        },
        Verb {
            name: "collection",
            prepare: |store| {
                pull(store, "one", &["base"], "app:1", &mut |_| {})?;
                let pulled = PullLayer { blob: digest("blob of top"), blob_size_bytes: 10, key: key("top") };
                store.begin_pull(PullFact { manifest: digest("given up"), layers: vec![pulled] })?;
                add_layer(store, "top", &mut |_| {})
            },
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                store.forget_pulls()?;
                ack(Ack::NoLayer("top"));
                store.empty_trash(u64::MAX)?;
                Ok(())
            },
        },
        Verb {
            name: "compaction",
            prepare: two_images,
            from_nothing: false,
            acks_a_commit: 3,
            promises: promises(),
            work: |store, ack| {
                for round in ["new:1", "new:2"] {
                    store.compact()?;
                    let mut txn = store.begin()?;
                    txn.set_tag(TagFact { name: round.to_owned(), image: image("one"), set_at_seconds: 7 })?;
                    txn.commit()?;
                    ack(Ack::Tag(round, "one"));
                }
                Ok(())
            },
        },
    ]
}

/// Barriers that one of these workloads can do without, each needed by another or by the world.
const KEPT: &[(&str, &str)] = &[
    ("sync /wal", "a name of a segment that is replaced before anything is appended to it; every other verb needs it"),
    (
        "sync data of /wal/spare",
        "zeros of a segment that none of these records reaches; the verbs that fill one need it",
    ),
    ("sync data of /wal/0000000000000001", "a batch is durable before the next is written (W2), and here none follows"),
];

fn explore_verb(name: &str) {
    let verb = &verbs().into_iter().find(|verb| verb.name == name).expect("a verb");
    let exploration = Exploration {
        subsets: Subsets { random: 32, ..Subsets::default() },
        barriers_kept: KEPT.iter().map(|(what, why)| ((*what).to_owned(), (*why).to_owned())).collect(),
        ..Exploration::default()
    };
    // Nothing of the store may go past the port, where no cut would see it.
    let report = sealed(|| explore(verb, &exploration)).unwrap_or_else(|error| panic!("{name}: {error}"));
    println!("{report}");
    report.assert_clean();
}

#[test]
fn a_cut_while_a_store_is_made_leaves_a_store_or_none() {
    explore_verb("create store");
}

#[test]
fn a_cut_layer_is_there_whole_or_not_at_all() {
    explore_verb("layer");
}

#[test]
fn a_cut_layer_goes_on_from_its_last_checkpoint() {
    explore_verb("layer in parts");
}

#[test]
fn a_cut_pull_leaves_its_image_whole_or_not_there() {
    explore_verb("image");
}

#[test]
fn layers_committed_together_with_their_image_are_there_together_or_not() {
    explore_verb("image at once");
}

#[test]
fn a_retag_cut_by_power_loss_leaves_the_old_image_or_the_new_one() {
    explore_verb("tag");
}

#[test]
fn a_cut_untag_leaves_the_tag_or_not() {
    explore_verb("untag");
}

#[test]
fn a_container_is_there_with_its_configuration_or_not_at_all() {
    explore_verb("container");
}

#[test]
fn a_volume_is_there_with_its_description_or_not_at_all() {
    explore_verb("volume");
}

#[test]
fn what_was_removed_stays_removed_and_can_be_pulled_again() {
    explore_verb("remove");
}

#[test]
fn a_cut_collection_takes_nothing_that_is_needed() {
    explore_verb("collection");
}

#[test]
fn a_cut_compaction_loses_no_record() {
    explore_verb("compaction");
}
