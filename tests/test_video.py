"""What goes into a video file comes out again; what cannot be used is refused in one sentence."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from tiny import write_disc

from freemask.clips.ffmpeg import run_ffmpeg, source_args, video_only
from freemask.clips.preview import write_preview
from freemask.clips.video import (
    MAX_PIXELS,
    MAX_SECONDS,
    MIN_SIDE,
    Clip,
    probe,
    read_clip,
    side_by_side,
    write_clip,
    write_gif,
)
from freemask.errors import ClipError, SettingError, StorageError

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
RATE = 24


def ffmpeg(*args: str) -> None:
    subprocess.run([FFMPEG, "-v", "error", "-nostdin", "-y", *args], check=True, timeout=60)


def streams(path: Path) -> str:
    """What ffmpeg says of a file's streams."""
    return subprocess.run([FFMPEG, "-i", path], capture_output=True, text=True).stderr


def numbered(count: int = 2 * RATE, *, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Frames (f, h, w, 3) each of one grey that says its index: see `indices`."""
    w, h = size
    greys = (20 + 4 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (count, h, w, 3)).copy()


def indices(clip: Clip) -> list[int]:
    return [round((float(frame.mean()) - 20) / 4) for frame in clip.frames]


def scene(count: int = 8, *, size: tuple[int, int] = (64, 48), fps: float = 8.0) -> Clip:
    """A smooth coloured ramp with a square that moves over it."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    ramp = np.stack([x * 200 / w, y * 200 / h, np.full((h, w), 90.0)], axis=-1).astype(np.uint8)
    frames = np.repeat(ramp[None], count, axis=0)
    for k, frame in enumerate(frames):
        frame[h // 4 : h // 2, 4 + 2 * k : 20 + 2 * k] = (220, 40, 30)
    return Clip(frames, fps)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two seconds at 24 fps, frame k of grey 20 + 4 k."""
    path = tmp_path / "numbered.mp4"
    write_clip(path, Clip(numbered(), RATE))
    return path


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """Two seconds of picture, of which the first 1.5 have sound."""
    path = tmp_path / "loud.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=24:d=2", "-f", "lavfi", "-i", "sine=d=1.5", str(path))
    return path


# --- there and back


def test_round_trip_keeps_count_size_rate_and_picture(tmp_path: Path) -> None:
    clip = scene(size=(128, 128))
    write_clip(tmp_path / "a.mp4", clip)
    back = read_clip(tmp_path / "a.mp4")
    assert back.frames.shape == clip.frames.shape
    assert back.frames.dtype == np.uint8
    assert back.frames.flags.writeable
    assert back.fps == clip.fps
    assert psnr(clip.frames, back.frames) > 35
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    write_clip(tmp_path / "a.mp4", Clip(np.full((4, 32, 32, 3), colour, np.uint8), 8))
    back = read_clip(tmp_path / "a.mp4", frames=4)
    assert np.abs(back.frames.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("size", [(33, 48), (48, 33), (17, 19)])
def test_odd_sides_grow_by_one_repeated_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    w, h = size
    clip = scene(size=size)
    write_clip(tmp_path / "a.mp4", clip)
    back = read_clip(tmp_path / "a.mp4").frames
    assert back.shape[1:3] == (h + h % 2, w + w % 2)
    assert psnr(back[:, :h, :w], clip.frames) > 30
    for added, last in ((back[:, h:], back[:, h - 1 : h]), (back[:, :, w:], back[:, :, w - 1 : w])):
        assert not added.size or np.abs(added.astype(float) - last).mean() < 3


def test_a_browser_can_play_what_is_written(tmp_path: Path, source: Path) -> None:
    info = probe(source)
    assert info.codec == "h264" and ", yuv420p" in streams(source) and ": Audio: " not in streams(source)
    data = source.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_the_same_clip_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, scene())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", scene(1))
    assert read_clip(tmp_path / "a.mp4", frames=1).frames.shape == (1, 48, 64, 3)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_clip(tmp_path / "taken.mp4", scene())
    assert [path.name for path in tmp_path.iterdir()] == ["taken.mp4"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_clip(tmp_path / "file" / "a.mp4", scene())


# --- which frames


def test_frame_k_is_the_one_on_display_at_start_plus_k_over_fps(source: Path) -> None:
    assert indices(read_clip(source)) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert indices(read_clip(source, start=0.5, frames=5)) == [12, 15, 18, 21, 24]
    assert indices(read_clip(source, start=0.5, frames=5, fps=24)) == [12, 13, 14, 15, 16]
    assert indices(read_clip(source, start=0.52, frames=3, fps=12)) == [12, 14, 16]
    assert indices(read_clip(source, frames=4, fps=10)) == [0, 2, 4, 7]


@pytest.mark.parametrize("k", range(0, 40, 3))
def test_every_start_on_a_frame_gives_that_frame(source: Path, k: int) -> None:
    assert indices(read_clip(source, start=k / RATE, frames=2, fps=RATE)) == [k, k + 1]


@pytest.mark.parametrize("suffix", ["mkv", "avi", "webm"])
def test_containers_with_coarse_clocks_too(source: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    ffmpeg("-i", str(source), "-q:v" if suffix == "avi" else "-crf", "4", str(path))
    assert indices(read_clip(path, start=10 / RATE, frames=4, fps=RATE)) == [10, 11, 12, 13]


def test_auto_rate_rises_only_as_far_as_the_clip_needs(source: Path) -> None:
    assert read_clip(source, frames=16).fps == 8
    assert read_clip(source, frames=24).fps == 12
    assert read_clip(source, frames=8, start=1.5).fps == 16
    assert indices(read_clip(source, frames=48)) == list(range(48))


def test_auto_rate_does_not_repeat_frames_of_a_slow_clip(tmp_path: Path) -> None:
    write_clip(tmp_path / "slow.mp4", Clip(numbered(10), 5))
    clip = read_clip(tmp_path / "slow.mp4", frames=10)
    assert (clip.fps, indices(clip)) == (5, list(range(10)))


def test_variable_frame_rate_keeps_real_time(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "vfr.mp4"
    chosen = "select=lt(n\\,12)+not(mod(n\\,6))"  # every frame of the first half second, then four a second
    ffmpeg("-i", str(source), "-vf", chosen, "-fps_mode", "vfr", "-crf", "4", str(path))
    assert indices(read_clip(path, frames=6, fps=4)) == [0, 6, 12, 18, 24, 30]
    assert indices(read_clip(path, frames=8, fps=8, start=0.25)) == [6, 9, 12, 12, 18, 18, 24, 24]


# --- sizes and pictures


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (33, 17), (128, 48), (64, 48)])
def test_size_is_met_exactly(source: Path, size: tuple[int, int]) -> None:
    assert read_clip(source, size=size).frames.shape == (8, size[1], size[0], 3)


def test_resizing_covers_then_crops_about_the_centre(tmp_path: Path) -> None:
    frames = np.zeros((8, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = (255, 255, 255)
    write_clip(tmp_path / "a.mp4", Clip(frames, 8))
    back = read_clip(tmp_path / "a.mp4", size=(32, 32))
    assert back.frames[:, :, 1:-1].mean() > 250
    wide = read_clip(tmp_path / "a.mp4", size=(64, 32)).frames.mean(axis=(0, 1, 3))
    assert wide[:14].max() < 6 and wide[18:46].min() > 249 and wide[50:].max() < 6


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_metadata_is_applied(tmp_path: Path, turn: int) -> None:
    frames = np.zeros((8, 32, 64, 3), np.uint8)
    frames[:, :16, :32] = (255, 0, 0)  # the top left quarter
    write_clip(tmp_path / "flat.mp4", Clip(frames, 8))
    ffmpeg("-display_rotation", str(turn), "-i", str(tmp_path / "flat.mp4"), "-c", "copy", str(tmp_path / "turned.mp4"))
    turned = np.rot90(frames, turn // 90, axes=(1, 2))
    info = probe(tmp_path / "turned.mp4")
    assert (info.height, info.width) == turned.shape[1:3]
    assert psnr(read_clip(tmp_path / "turned.mp4").frames, turned) > 30


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48:d=1:r=8", "-aspect", "2:1", str(path))
    assert (probe(path).width, probe(path).height) == (96, 48)
    assert read_clip(path).frames.shape == (8, 48, 96, 3)


CODECS = {
    "hevc": ("mp4", "libx265", "yuv420p", "-x265-params", "log-level=error"),
    "hevc-10-bit": ("mov", "libx265", "yuv420p10le", "-x265-params", "log-level=error"),
    "h264-10-bit": ("mp4", "libx264", "yuv420p10le"),
    "h264-4:4:4": ("mkv", "libx264", "yuv444p"),
    "vp9": ("webm", "libvpx-vp9", "yuv420p", "-cpu-used", "8"),
    "prores": ("mov", "prores_ks", "yuv422p10le"),
    "lossless-odd": ("mkv", "ffv1", "bgr0"),
    "gif": ("gif", "gif", "rgb8"),
}


@pytest.mark.parametrize("name", CODECS)
def test_codecs_and_depths(tmp_path: Path, name: str) -> None:
    suffix, encoder, pix_fmt, *extra = CODECS[name]
    encoders = subprocess.run([FFMPEG, "-v", "error", "-encoders"], capture_output=True, text=True, check=True).stdout
    if f" {encoder} " not in encoders:
        pytest.skip(f"this ffmpeg has no {encoder}")
    size = (63, 47) if name in ("lossless-odd", "gif") else (64, 48)
    path = tmp_path / f"a.{suffix}"
    spec = f"color=0xC82828:s={size[0]}x{size[1]}:r=25:d=1"
    ffmpeg("-f", "lavfi", "-i", spec, "-pix_fmt", pix_fmt, "-c:v", encoder, *extra, str(path))
    info = probe(path)
    assert (info.width, info.height, info.fps) == (*size, 25)
    assert info.duration == pytest.approx(1, abs=0.05)
    clip = read_clip(path)
    assert clip.frames.shape == (8, size[1], size[0], 3)
    tolerance = 50 if name == "gif" else 8
    assert np.abs(clip.frames.astype(int) - (0xC8, 0x28, 0x28)).max() <= tolerance


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_an_avi_whose_codec_reorders_frames(source: Path, tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.avi"
    ffmpeg("-i", str(source), "-c:v", codec, "-bf", "2", "-q:v" if codec == "mpeg4" else "-crf", "4", str(path))
    assert indices(read_clip(path, start=10 / RATE, frames=4, fps=RATE)) == [10, 11, 12, 13]
    assert indices(read_clip(path)) == [0, 3, 6, 9, 12, 15, 18, 21]


# --- pictures

CORNERS = np.zeros((32, 64, 3), np.uint8)  # red at the top left, blue at the bottom right
CORNERS[:16, :32], CORNERS[16:, 32:] = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.mp4"])
def test_a_still_is_a_clip_of_one_frame(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.mp4":
        write_clip(path, Clip(CORNERS[None], 24))
    else:
        Image.fromarray(CORNERS).save(path, quality=95)
    info = probe(path)
    assert info.still and (info.width, info.height) == (64, 32)
    assert np.abs(read_clip(path, frames=1).frames[0].astype(int) - CORNERS).mean() < 8
    left = read_clip(path, frames=1, size=(32, 32)).frames[0]
    assert np.abs(left[4:12, :14].astype(int) - (255, 0, 0)).mean() < 8  # cropped about the centre
    assert not probe(write_disc(tmp_path / "two.mp4", frames=2, fps=60.0)).still


def test_a_photo_is_turned_as_its_camera_tells(tmp_path: Path) -> None:
    told = Image.Exif()
    told[0x0112] = 6  # a quarter clockwise
    Image.fromarray(CORNERS).save(tmp_path / "photo.jpg", quality=95, exif=told)
    info = probe(tmp_path / "photo.jpg")
    assert (info.width, info.height) == (32, 64)
    assert psnr(read_clip(tmp_path / "photo.jpg", frames=1).frames[0], np.rot90(CORNERS, -1)) > 25


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([CORNERS, np.zeros((32, 64), np.uint8)])).save(tmp_path / "clear.png")
    assert read_clip(tmp_path / "clear.png", frames=1).frames.min() == 255


def test_sixteen_bits_keep_their_levels(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 128 << 8, np.uint16)).save(tmp_path / "deep.png")
    assert (read_clip(tmp_path / "deep.png", frames=1).frames == 128).all()


def test_a_moving_webp_shows_each_frame_for_its_own_time(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in numbered(4)]
    pictures[0].save(
        tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=[100, 300, 100, 500], lossless=True
    )
    info = probe(tmp_path / "a.webp")
    assert (info.duration, info.fps, info.still, info.codec) == (pytest.approx(1), pytest.approx(4), False, "webp")
    assert indices(read_clip(tmp_path / "a.webp", frames=10, fps=10)) == [0, 1, 1, 1, 2, 3, 3, 3, 3, 3]
    assert indices(read_clip(tmp_path / "a.webp", frames=2, fps=10, start=0.35)) == [1, 2]
    assert "fewer frames" in refusal(tmp_path / "a.webp", frames=3, fps=10, start=0.8)


def test_a_preview_is_what_browsers_play(tmp_path: Path, loud: Path) -> None:
    path = tmp_path / "large.mov"
    ffmpeg("-i", str(loud), "-vf", "scale=1280:962", "-c:v", "prores_ks", "-c:a", "pcm_s16le", str(path))
    write_preview(path, tmp_path / "preview.mp4")
    info = probe(tmp_path / "preview.mp4")
    told = streams(tmp_path / "preview.mp4")
    assert (info.codec, info.width, info.height) == ("h264", 640, 480) and ", yuv420p(tv, bt709" in told
    assert "unknown" not in re.search(r"yuv420p\([^)]*\)", told)[0]  # matrix, primaries and transfer
    assert ": Audio: " in told and info.fps == 24 and info.duration == pytest.approx(2, abs=0.1)
    same = [read_clip(one, frames=1, start=1.0, size=(64, 48)).frames for one in (path, tmp_path / "preview.mp4")]
    assert psnr(*same) > 25
    Image.fromarray(CORNERS).save(tmp_path / "still.png")
    write_preview(tmp_path / "still.png", tmp_path / "still.mp4")
    assert probe(tmp_path / "still.mp4").still and probe(tmp_path / "still.mp4").codec == "h264"
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ClipError, match="is not a video"):
        write_preview(tmp_path / "text.mp4", tmp_path / "none.mp4")


def test_hdr_is_brought_to_the_range_of_a_screen(tmp_path: Path) -> None:
    path = tmp_path / "hdr.mkv"
    hlg = "format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48:r=8:d=1", "-vf", hlg, "-c:v", "ffv1", str(path))
    assert probe(path).hdr
    red, green, blue = read_clip(path, size=(33, 33)).frames.mean(axis=(0, 1, 2))
    assert red > 120 and red > 2 * green and red > 2 * blue


def test_4k_is_read_at_the_size_asked(tmp_path: Path) -> None:
    path = tmp_path / "4k.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=blue:s=2160x3840:r=8:d=1", "-preset", "ultrafast", str(path))
    assert (probe(path).width, probe(path).height) == (2160, 3840)
    assert read_clip(path, size=(64, 64)).frames.shape == (8, 64, 64, 3)


def test_a_header_without_a_duration_is_measured(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "live.mkv"
    with path.open("wb") as stream:  # written to a pipe, a matroska header cannot be completed afterwards
        subprocess.run(
            [FFMPEG, "-v", "error", "-i", source, "-c", "copy", "-f", "matroska", "-"], stdout=stream, check=True
        )
    assert probe(path).duration == pytest.approx(2, abs=0.05)
    assert indices(read_clip(path, frames=4)) == [0, 3, 6, 9]


# --- sound


def test_sound_is_kept_where_its_length_fits(loud: Path, tmp_path: Path) -> None:
    clip = read_clip(loud)
    write_clip(tmp_path / "kept.mp4", clip, audio_from=loud)
    info = probe(tmp_path / "kept.mp4")
    assert ": Audio: " in streams(tmp_path / "kept.mp4")
    assert info.duration == pytest.approx(clip.seconds, abs=0.05)
    assert len(read_clip(tmp_path / "kept.mp4").frames) == 8


def test_sound_too_short_or_absent_is_left_out(loud: Path, source: Path, tmp_path: Path) -> None:
    clip = read_clip(loud, start=1.0)
    write_clip(tmp_path / "short.mp4", clip, audio_from=loud, start=1.0)
    assert ": Audio: " not in streams(tmp_path / "short.mp4")
    assert probe(loud).sound and not probe(source).sound
    for name in (source, tmp_path / "gone.mp4"):
        write_clip(tmp_path / "absent.mp4", clip, audio_from=name)
        assert ": Audio: " not in streams(tmp_path / "absent.mp4")


def test_sound_begins_at_start(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    late = "aevalsrc=if(gt(t\\,1)\\,sin(2764*t)\\,0):d=2:s=48000"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48:r=8:d=2", "-f", "lavfi", "-i", late, "-c:a", "pcm_s16le", str(path))
    loudness = {}
    for start in (0.0, 1.0):
        write_clip(tmp_path / "cut.mp4", read_clip(path, start=start), audio_from=path, start=start)
        command = [FFMPEG, "-v", "error", "-i", str(tmp_path / "cut.mp4"), "-f", "s16le", "-"]
        samples = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16)
        loudness[start] = np.abs(samples[: len(samples) * 9 // 10].astype(float)).mean()
    assert loudness[1.0] > 1000 > 100 > loudness[0.0]


# --- side by side


def test_side_by_side_joins_left_to_right() -> None:
    a, b = scene(), scene(size=(32, 48))
    both = side_by_side(a, b, a)
    assert both.frames.shape == (8, 48, 160, 3)
    assert np.array_equal(both.frames[:, :, 64:96], b.frames)
    assert both.fps == a.fps


@pytest.mark.parametrize("other", [scene(7), scene(size=(64, 32)), scene(fps=9)])
def test_side_by_side_wants_equals(other: Clip) -> None:
    with pytest.raises(ClipError, match="same frame count, height and fps"):
        side_by_side(scene(), other)


# --- refusals


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(ClipError) as caught:
        read_clip(path, **settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and (": " in message or "; " in message)
    return message


def test_no_file_folder_empty_file(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "none.mp4")
    assert "is not a file" in refusal(tmp_path)
    (tmp_path / "void.mp4").touch()
    assert "is empty" in refusal(tmp_path / "void.mp4")


def test_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("I am no video. " * 50)
    assert "is not a video" in refusal(tmp_path / "text.mp4")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    assert "is not a video" in refusal(tmp_path / "noise.mp4")
    Image.effect_noise((64, 64), 90).save(tmp_path / "still.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "still.png").read_bytes()[:2000])
    assert "cut off or damaged" in refusal(tmp_path / "torn.png")


def test_playlists_cannot_reach_other_files(tmp_path: Path, source: Path) -> None:
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{source}\n#EXT-X-ENDLIST\n")
    assert "is not a video" in refusal(tmp_path / "list.mp4")
    (tmp_path / "list.mkv").write_text(f"ffconcat version 1.0\nfile '{source.name}'\n")
    assert "is not a video" in refusal(tmp_path / "list.mkv")


def test_sound_alone_also_with_a_cover_picture(tmp_path: Path, source: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(tmp_path / "song.m4a"))
    assert "holds sound but no moving picture" in refusal(tmp_path / "song.m4a")
    cover = ("-map", "0", "-map", "1:v", "-c:v", "mjpeg", "-frames:v", "1", "-disposition:v", "attached_pic")
    ffmpeg("-i", str(tmp_path / "song.m4a"), "-i", str(source), *cover, str(tmp_path / "covered.m4a"))
    assert "holds sound but no moving picture" in refusal(tmp_path / "covered.m4a")


def test_zero_frames(tmp_path: Path, source: Path) -> None:
    ffmpeg("-i", str(source), "-frames:v", "0", str(tmp_path / "none.mp4"))
    assert "holds no frames" in refusal(tmp_path / "none.mp4")


def test_truncated(tmp_path: Path, source: Path) -> None:
    plain = tmp_path / "plain.mp4"
    ffmpeg("-i", str(source), "-c", "copy", str(plain))  # the index comes last
    (tmp_path / "headless.mp4").write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    assert "is cut off" in refusal(tmp_path / "headless.mp4")
    data = source.read_bytes()  # the index comes first
    begin = data.index(b"mdat")
    (tmp_path / "hollow.mp4").write_bytes(data[: begin + 10])
    assert "No frame" in refusal(tmp_path / "hollow.mp4")
    (tmp_path / "begun.mp4").write_bytes(data[: begin + (len(data) - begin) // 4])
    assert "cut off" in refusal(tmp_path / "begun.mp4", frames=40)


def test_a_codec_that_cannot_be_decoded_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "odd.mp4").write_bytes(source.read_bytes().replace(b"avc1", b"xyz1"))
    message = refusal(tmp_path / "odd.mp4")
    assert "xyz1" in message and "H.264" in message


def test_too_few_frames(source: Path) -> None:
    message = refusal(source, frames=49)
    assert "has 48 frames" in message and "49 are asked" in message and "fewer frames" in message
    assert "has 6 frames from 1.75 s" in refusal(source, frames=8, start=1.75)
    message = refusal(source, frames=17, fps=8.0)
    assert "has 16 frames" in message and "raise fps" in message


@pytest.mark.parametrize("start", [2.0, 60.0])
def test_start_beyond_the_end(source: Path, start: float) -> None:
    message = refusal(source, start=start)
    assert "lasts 2 s" in message and "choose a start" in message


@pytest.mark.parametrize("size", ["8x8", f"64x{MIN_SIDE - 2}"])
def test_a_side_too_small(tmp_path: Path, size: str) -> None:
    ffmpeg("-f", "lavfi", "-i", f"color=red:s={size}:r=8:d=1", str(tmp_path / "tiny.mp4"))
    message = refusal(tmp_path / "tiny.mp4")
    assert size in message and f"at least {MIN_SIDE} pixels" in message


def test_a_ribbon_is_not_blown_up(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "color=red:s=4096x16:r=8:d=1", str(tmp_path / "ribbon.mp4"))
    assert "choose a size" in refusal(tmp_path / "ribbon.mp4", size=(512, 512))
    ffmpeg("-f", "lavfi", "-i", "color=red:s=4096x256:r=8:d=1", "-aspect", "160:1", str(tmp_path / "flat.mp4"))
    assert "over the limit" in refusal(tmp_path / "flat.mp4")


def test_over_the_limits(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", f"color=red:s=32x32:r=1:d={MAX_SECONDS + 2}", str(tmp_path / "long.mp4"))
    assert f"over the limit of {MAX_SECONDS} s" in refusal(tmp_path / "long.mp4")
    huge = ("-f", "lavfi", "-i", "color=red:s=4352x2304:r=1:d=1", "-c:v", "mpeg4")
    ffmpeg(*huge, str(tmp_path / "huge.mp4"))
    message = refusal(tmp_path / "huge.mp4")
    assert "4352x2304" in message and f"{MAX_PIXELS:,}" in message


@pytest.mark.parametrize(
    "settings",
    [
        {"frames": 0},
        {"start": -0.1},
        {"start": float("nan")},
        {"fps": 0.0},
        {"fps": float("inf")},
        {"size": (64, MIN_SIDE - 1)},
    ],
)
def test_numbers_out_of_range(source: Path, settings: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        read_clip(source, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frames", [np.zeros((8, 4, 4), np.uint8), np.zeros((8, 4, 4, 3)), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_a_clip_holds_rgb_bytes(frames: np.ndarray) -> None:
    with pytest.raises(ClipError, match="uint8"):
        Clip(frames, 8)


def test_a_clip_has_a_rate() -> None:
    with pytest.raises(ClipError, match="above 0"):
        Clip(scene().frames, 0)


def test_outputs_say_how_they_were_made(tmp_path):
    clip = Clip(np.random.default_rng(0).integers(0, 255, (3, 16, 17, 3), dtype=np.uint8), 8.0)
    write_clip(tmp_path / "a.mp4", clip, note="Made with AI: a test.")
    assert b"Made with AI: a test." in (tmp_path / "a.mp4").read_bytes()
    write_gif(tmp_path / "a.gif", clip, note="Made with AI: a test.")
    assert b"Made with AI: a test." in (tmp_path / "a.gif").read_bytes()
    info = probe(tmp_path / "a.gif")
    assert (info.width, info.height, info.codec) == (17, 16, "gif")
    again = read_clip(tmp_path / "a.gif", frames=3, fps=8)
    assert again.frames.shape == clip.frames.shape
    assert np.abs(again.frames.astype(int) - clip.frames).mean() < 40
    with pytest.raises(StorageError, match="cannot be written"):
        write_gif(tmp_path / "a.mp4" / "b.gif", clip)


BARS = np.array([(200, 40, 40), (40, 180, 60), (50, 60, 210)], np.uint8)


@pytest.mark.parametrize(
    ("size", "matrix", "full", "tagged"),
    [
        ((1280, 960), "bt709", False, True),
        ((1280, 960), "bt709", True, True),
        ((320, 240), "bt709", False, True),
        ((1280, 960), "smpte170m", False, True),
        ((320, 240), "smpte170m", False, False),
        ((1280, 720), "bt709", False, False),
        ((960, 1280), "bt709", False, False),
    ],
)
def test_colours_are_read_by_their_tag_or_as_browsers_read_untagged_ones(tmp_path, size, matrix, full, tagged):
    w, h = size
    frame = np.repeat(BARS[np.minimum(np.arange(w) * 3 // w, 2)][None], h, 0)
    span = "pc" if full else "tv"
    tag = f"setparams=colorspace={matrix}:range={span}" if tagged else "setparams=colorspace=unknown:range=unknown"
    path = tmp_path / "bars.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}"]
    command += ["-i", "pipe:0", "-vf", f"scale=out_color_matrix={matrix}:out_range={span},format=yuv420p,{tag}"]
    subprocess.run([*command, "-c:v", "libx264", "-crf", "4", path], input=frame.tobytes(), check=True)
    assert bool(probe(path).matrix) is not tagged
    read = read_clip(path, frames=1).frames[0].astype(int)
    shown = np.stack([read[h // 2, (2 * i + 1) * w // 6] for i in range(3)])
    assert np.abs(shown - BARS).max() <= 3, shown


def test_what_is_written_is_tagged(tmp_path):
    write_clip(tmp_path / "clip.mp4", Clip(np.full((2, 1080, 64, 3), BARS[0], np.uint8), 8.0))
    log = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "clip.mp4"], capture_output=True, text=True)
    assert re.search(r"yuv420p\(tv, bt709(, progressive)?\)", log.stderr)  # matrix, primaries and transfer
    assert probe(tmp_path / "clip.mp4").matrix == ""
    assert np.abs(read_clip(tmp_path / "clip.mp4", frames=1).frames[0, 540, 32].astype(int) - BARS[0]).max() <= 3


# --- two fields in a frame


def fields(path: Path, *codec: str, order: str = "tff") -> Path:
    """A bar that moves between the two fields of each frame."""
    ground, bar = "color=black:s=128x96:r=50:d=1,format=yuv420p", "color=white:s=16x96:r=50:d=1"
    drawn = f"{ground}[a];{bar}[b];[a][b]overlay=x='mod(n*6,128)',interlace=scan={order}:lowpass=off"
    ffmpeg("-f", "lavfi", "-i", drawn, *codec, str(path))
    return path


def combed(frames: np.ndarray) -> bool:
    """Whether neighbouring lines differ by more than those of one field do, and a codec's noise."""
    green = frames[..., 1].astype(int)
    return bool(np.abs(np.diff(green, axis=1)).mean() > np.abs(green[:, 2:] - green[:, :-2]).mean() + 2)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", ("-c:v", "libx264", "-qp", "0", "-flags", "+ilme+ildct")),
        ("a.mpg", ("-c:v", "mpeg2video", "-q:v", "2", "-flags", "+ilme+ildct")),
        ("a.mov", ("-c:v", "prores_ks", "-flags", "+ilme")),
        ("a.avi", ("-c:v", "mpeg4", "-q:v", "2", "-flags", "+ilme+ildct")),
    ],
)
@pytest.mark.parametrize("order", ["tff", "bff"])
def test_what_is_flagged_as_interlaced_comes_out_without_combs(
    tmp_path: Path, name: str, codec: tuple[str, ...], order: str
) -> None:
    path = fields(tmp_path / name, *codec, order=order)
    assert probe(path).interlaced
    assert not combed(read_clip(path, frames=12, start=0.2, fps=25).frames)
    write_preview(path, tmp_path / "preview.mp4")
    assert not combed(read_clip(tmp_path / "preview.mp4", frames=12, start=0.2, fps=25).frames)


def test_frames_without_a_flag_stay_as_they_are(tmp_path: Path, source: Path) -> None:
    assert not probe(source).interlaced
    both = fields(tmp_path / "a.nut", "-c:v", "rawvideo")
    plain = tmp_path / "b.mkv"
    ffmpeg("-i", str(both), "-vf", "setfield=prog", "-c:v", "ffv1", str(plain))
    assert not probe(plain).interlaced and combed(read_clip(plain, frames=12, start=0.2, fps=25).frames)


# --- pictures that would be decoded without end


def test_a_moving_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    from hostile.clips import apng

    (tmp_path / "large.png").write_bytes(apng((4000, 2300), 3, said=2000))
    assert "2,000 frames of 4000x2300" in refusal(tmp_path / "large.png")
    (tmp_path / "long.png").write_bytes(apng((16, 16), 40, said=40, shown=(60, 1)))
    assert "over the limit of 300 s" in refusal(tmp_path / "long.png")


def test_only_as_much_of_a_moving_picture_is_decoded_as_tells_that_it_is_too_long(tmp_path: Path) -> None:
    from hostile.clips import apng

    from freemask.clips.stills import frame_lengths

    (tmp_path / "long.png").write_bytes(apng((16, 16), 40, shown=(60, 1)))
    assert len(frame_lengths(tmp_path / "long.png", 300)) == 6


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scans.jpg"
    Image.effect_noise((64, 64), 90).save(file, progressive=True)
    data = file.read_bytes()
    assert probe(file).still
    scan = data[data.rindex(b"\xff\xda") : -2]
    file.write_bytes(data[:-2] + scan * 100 + b"\xff\xd9")
    assert "over 100 scans" in refusal(file)


def test_a_header_that_promises_too_many_pixels_costs_no_memory(tmp_path: Path) -> None:
    from hostile.clips import gif

    (tmp_path / "huge.gif").write_bytes(gif((12_000, 15_000), 3, 10))
    assert "No frame" in refusal(tmp_path / "huge.gif") or "12000x15000" in refusal(tmp_path / "huge.gif")
    done = run_ffmpeg(*source_args(tmp_path / "huge.gif"), *video_only("-frames:v", "2"))
    assert b"frame=0" in done.stdout


def test_a_clip_shorter_than_an_encoders_padding_needs_no_sound(tmp_path: Path, source: Path) -> None:
    write_clip(tmp_path / "a.mp4", Clip(scene().frames[:4], 240.0), audio_from=source)
    assert ": Audio: " not in streams(tmp_path / "a.mp4")
