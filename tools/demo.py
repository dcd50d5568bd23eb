"""Opens a local page on which photos are compared and people are searched.

    python -m tools.demo --model runs/mine --gallery KNOWN

Drop two photos to see their faces, the crops, the cosine and what it means; or one photo to find
its people in the gallery. The page is served to this machine only, at 127.0.0.1, and neither it nor
the server calls anything outside. Photos that were dropped are removed when the command ends.

It needs gradio: pip install -e '.[demo]'
"""

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from data.decode import encode_jpeg
from data.detect import load_detector
from data.limits import MOST_IMAGE_BYTES
from data.options import Count, Range
from eval.report.html import escape, faces_notice, image
from tools._cli import command
from tools._faces import Align, FaceImages, FaceIn, draw_boxes, find_faces
from tools._gallery import Gallery, open_gallery
from tools._model import ModelOptions
from tools._recognizer import Recognizer, open_recognizer
from tools.match import match_faces
from tools.search import Found, search_faces, strangers_line

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"
CROP = 112  # side of the faces on the page, in pixels
# What the browser may load: files of this server, and pictures and scripts inside of the page.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'"
Port = Annotated[int, Range(at_least=0, at_most=65535)]


def compare_page(first: str | None, second: str | None, model: Recognizer, align: Align) -> str:
    """HTML of the comparison of two photos; ValueError if one is missing or shows no face."""
    if not first or not second:
        raise ValueError("drop two photos, one on each side")
    photos = [_faces(Path(photo), model, align) for photo in (first, second)]
    record = match_faces(photos[0][0], photos[1][0], model)
    lines = [f"cosine {record['cosine']:.4f}"]
    if model.evaluation:
        lines = [f"{record['word']}, {lines[0]}", model.evaluation.threshold_line()]
        lines += record["wrong"]
    else:
        lines.append(f"no threshold: {model.unknown}")
    sides = (
        _figure(_boxed(faces, 1), faces[0].photo.name) + _figure(_crop(faces[0]), "its crop")
        for faces in photos
    )
    return _heading(lines) + _row([f"<div>{side}</div>" for side in sides])


def search_page(
    photo: str | None, gallery: Gallery, model: Recognizer, align: Align, top: int
) -> str:
    """HTML of the people in one photo, and of those in the gallery who are most like them."""
    if not photo:
        raise ValueError("drop a photo")
    faces = _faces(Path(photo), model, align)
    lines = [model.evaluation.threshold_line()] if model.evaluation else []
    lines.append(strangers_line(len(gallery)) if model.evaluation else "no threshold")
    found = search_faces(faces, gallery, model, top)
    return (
        _row([_figure(_boxed(faces, len(faces)), faces[0].photo.name)])
        + "".join(map(_matches, found))
        + "".join(f"<p>{escape(line)}</p>" for line in lines)
    )


def _faces(photo: Path, model: Recognizer, align: Align) -> list[FaceIn]:
    faces = find_faces(photo, model.size, align, load_detector())
    if not faces:
        raise ValueError(f"{photo.name}: no face was found")
    return faces


def _matches(found: Found) -> str:
    """One face, and beside it the people who are most like it."""
    pictures = [_figure(_crop(found.face), f"face {found.face.number}")]
    pictures += [
        _figure(_crop(match.face), f"{match.name}: {match.cosine:.4f} {match.word or ''}")
        for match in found.matches
    ]
    return _row(pictures)


def _crop(face: FaceIn) -> bytes:
    return encode_jpeg(FaceImages([face]).crop(0, CROP))


def _boxed(faces: list[FaceIn], compared: int) -> bytes:
    """The photo as a JPEG, with a box around each of its faces."""
    return encode_jpeg(draw_boxes(faces, compared))


def _heading(lines: list[str]) -> str:
    first, *others = map(escape, lines)
    return f"<h2>{first}</h2>" + "".join(f"<p>{line}</p>" for line in others)


def _figure(content: bytes, caption: str) -> str:
    shown = f"<figcaption>{escape(caption)}</figcaption>"
    return (
        f"<figure style='margin:0 0 1rem;max-width:20rem'>{image(content, caption)}{shown}</figure>"
    )


def _row(pictures: list[str]) -> str:
    style = "display:flex;flex-wrap:wrap;gap:1rem;align-items:start;margin:1rem 0"
    return f"<div style='{style}'>{''.join(pictures)}</div>"


def build_app(model: Recognizer, gallery: Gallery | None, align: Align, top: int) -> "FastAPI":
    """The page as a web application. `_quiet_gradio` must have been called before."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    def told(function: Callable[..., str]) -> Callable[..., str]:
        def call(*photos: str | None) -> str:
            try:
                return function(*photos)
            except (ValueError, OSError) as error:
                return _heading([f"error: {error}"])

        return call

    def dropped(label: str) -> Any:
        return gr.Image(
            label=label, type="filepath", image_mode=None, sources=["upload"], height=240
        )

    with gr.Blocks(title="Compare faces", analytics_enabled=False) as page:
        gr.HTML(faces_notice("the photos that you drop here and those of the gallery"))
        with gr.Tab("Two photos"):
            with gr.Row():
                photos = [dropped("first photo"), dropped("second photo")]
            compare = gr.Button("Compare", variant="primary", elem_id="compare")
            compared = gr.HTML(elem_id="compared")
            compare.click(
                told(lambda first, second: compare_page(first, second, model, align)),
                photos,
                compared,
                concurrency_id="model",
            )
        if gallery is not None:
            with gr.Tab("Search the gallery"):
                photo = dropped("photo")
                search = gr.Button("Search", variant="primary", elem_id="search")
                searched = gr.HTML(elem_id="searched")
                search.click(
                    told(lambda one: search_page(one, gallery, model, align, top)),
                    photo,
                    searched,
                    concurrency_id="model",
                )
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(_Policy)
    gr.mount_gradio_app(
        app, page, "/", footer_links=[], ssr_mode=False, max_file_size=MOST_IMAGE_BYTES
    )
    return app


class _Policy:
    """Adds the policy to each answer, so that the browser calls nothing but this server."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                name = b"content-security-policy"
                message = {**message, "headers": [*message["headers"], (name, POLICY.encode())]}
            await send(message)

        await self.app(scope, receive, with_policy)


def _quiet_gradio(folder: str) -> None:
    """Before gradio is imported: no calls outside, no history, uploads go into `folder`."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": folder,
    }


def run(
    *,
    source: ModelOptions,
    gallery: Path | None = None,
    top: Count = 5,
    port: Port = 7860,
    index: Path | None = None,
    align: Align = "auto",
    evaluation: Path | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    source: the model.
    gallery: photo, folder of photos, or folder with one folder per person, to search in.
    top: people to list for each face.
    port: number of the port at 127.0.0.1; 0 takes any free one.
    index: folder in which the embeddings of the gallery are kept, instead of GALLERY.index.
    align: in which images a face is sought: auto (those that do not have the size of the model's
        input), always or never.
    evaluation: folder with the results.json of the model, if it is not the model's own folder.
    """
    with _listen(port) as listening, tempfile.TemporaryDirectory(prefix="faces-") as uploads:
        _quiet_gradio(uploads)
        try:
            import gradio  # noqa: F401
            import uvicorn
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the demo needs {error.name}: pip install -e '.[demo]' in the checkout"
            ) from None
        model = open_recognizer(source, evaluation)
        known = open_gallery(gallery, model, align, index) if gallery else None
        app = build_app(model, known, align, top)
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        print(f"{address} shows the page; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ValueError(f"port {port} at {HOST}: {why}; give another one with --port") from None


main = command(run)
