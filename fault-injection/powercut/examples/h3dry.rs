//! Scratch.
use baleen_powercut::engines;
use baleen_powercut::workload::*;
use std::sync::{Arc, Mutex};
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let program: Option<std::path::PathBuf> = std::env::var_os("BIN").map(Into::into);
    for name in &args[1..] {
        let dir = std::env::temp_dir().join(format!("h3dry-{}", std::process::id()));
        let (disk, run) = (dir.join("disk"), dir.join("run"));
        std::fs::create_dir_all(&disk).unwrap();
        std::fs::create_dir_all(&run).unwrap();
        let mut w = engines::named(name, program.clone()).unwrap().unwrap();
        let place = Place { disk: &disk, run: &run };
        let marks = Arc::new(Mutex::new(Vec::new()));
        let sink = marks.clone();
        let m = Marks::to(move |mark| sink.lock().unwrap().push(mark));
        let show = |e: &dyn std::error::Error| { let mut t = e.to_string(); let mut s = e.source(); while let Some(x) = s { t += &format!(": {x}"); s = x.source(); } t };
        let t = Instant::now();
        let r = w.prepare(&place).and_then(|()| w.start(&place)).and_then(|()| w.run(&place, &m));
        w.stop();
        let worked = t.elapsed();
        if let Err(e) = r { println!("{name}: {}", show(&e)); let _ = std::fs::remove_dir_all(&dir); continue }
        std::fs::remove_dir_all(&run).unwrap(); std::fs::create_dir_all(&run).unwrap();
        let h = History { marks: marks.lock().unwrap().clone() };
        let t = Instant::now();
        let b = w.check(&place, &h);
        w.stop();
        match b { Ok(b) => println!("{name}: {} marks, worked {worked:?}, judged {:?}: {b:#?}", h.marks.len(), t.elapsed()), Err(e) => println!("{name}: {}", show(&e)) }
        let _ = std::fs::remove_dir_all(&dir);
    }
}
