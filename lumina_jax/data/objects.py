"""3-D models to views: pictures of an object on white, from all around it (Lumina-T2X, section 2.4: 12 views,
elevation 30 degrees, even azimuths).

In: a file (.obj with its materials and textures, .glb, .gltf, .ply or .stl; y is up). Out: pixels [f h w 3], view 0
from the front, the camera going around counter-clockwise as seen from above. VTK renders, the extra `views`; it needs
no screen, but OpenGL in software or hardware (Debian: apt install libegl1).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lumina_jax.modalities.decoding.kinds import check_file

ELEVATION = 30.0
"""Degrees above the horizon from which the camera looks down."""
ANGLE = 30.0
"""Degrees that the camera sees from its lower to its upper edge."""
LIGHTS = ((0.7, (0.4, 0.9, 1.0)), (0.3, (-0.7, 0.2, 1.0)))
"""Intensity, and position beside the camera, of each light: so weak together that white stands out from the ground."""
AMBIENT = 0.25
"""Light that comes from everywhere, at least, as a share of a surface's color."""
FRAME_MARGIN = 1.05
SAMPLES = 8
"""Of each pixel's colour, against jagged edges."""
WHITE, LEAST_SEEN = 250, 0.01
"""Each view of an object must have that share of pixels that are darker than white."""
READERS = {".ply": "vtkPLYReader", ".stl": "vtkSTLReader"}
IMPORTERS = {".obj": "vtkOBJImporter", ".glb": "vtkGLTFImporter", ".gltf": "vtkGLTFImporter"}


def render_views(
    file: Path, *, views: int, size: int, elevation: float = ELEVATION
) -> UInt8[np.ndarray, "f height width 3"]:
    """`views` pictures of `size` x `size` pixels at even azimuths.

    Raises:
      ValueError: no such file, another ending, or nothing in it to see.
      RuntimeError: VTK is not installed, or cannot open a window in memory.
    """
    vtk = load_vtk()
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetMultiSamples(SAMPLES)
    window.SetSize(size, size)
    renderer = vtk.vtkRenderer()
    window.AddRenderer(renderer)
    _load(vtk, file, window, renderer)
    renderer.SetBackground(1, 1, 1)
    renderer.RemoveAllLights()
    for intensity, position in LIGHTS:
        light = vtk.vtkLight()
        light.SetLightTypeToCameraLight()
        light.SetPosition(*position)
        light.SetIntensity(intensity)
        renderer.AddLight(light)
    for actor in renderer.GetActors():
        surface = actor.GetProperty()
        ambient = surface.GetAmbient() * np.array(surface.GetAmbientColor())
        least = AMBIENT * np.array(surface.GetDiffuseColor())
        surface.SetAmbientColor(*np.maximum(ambient, least))
        surface.SetAmbient(1.0)
    bounds = np.array(renderer.ComputeVisiblePropBounds()).reshape(3, 2)
    if not (bounds[:, 0] <= bounds[:, 1]).all():
        raise ValueError("the model has no surface to see")
    frames = [
        _picture(vtk, window, renderer, bounds, 2 * math.pi * view / views, math.radians(elevation))
        for view in range(views)
    ]
    window.Finalize()
    return np.stack(frames)


def check_visible(views: UInt8[np.ndarray, "f height width 3"]) -> None:
    """Refuse glass and white walls, which vanish before white.

    Raises:
      ValueError: a view has almost no pixels that are darker.
    """
    if (views < WHITE).any(axis=-1).mean(axis=(1, 2)).min() < LEAST_SEEN:
        raise ValueError("there is almost nothing to see of it")


def _load(vtk: Any, file: Path, window: Any, renderer: Any) -> None:
    """Put what a file holds into the window."""
    ending = file.suffix.lower()
    if ending not in IMPORTERS | READERS:
        raise ValueError(f"a 3-D model must end in {', '.join(IMPORTERS | READERS)}, but is {file.name}")
    check_file(file)
    if ending in READERS:
        reader, mapper, actor = getattr(vtk, READERS[ending])(), vtk.vtkPolyDataMapper(), vtk.vtkActor()
        reader.SetFileName(str(file))
        mapper.SetInputConnection(reader.GetOutputPort())
        actor.SetMapper(mapper)
        renderer.AddActor(actor)
        return
    importer = getattr(vtk, IMPORTERS[ending])()
    importer.SetFileName(str(file))
    if ending == ".obj":
        materials = _materials(file)
        if materials is not None:
            importer.SetFileNameMTL(str(materials))
        importer.SetTexturePath(str(file.parent))
    importer.SetRenderWindow(window)
    importer.Update()


def _materials(file: Path) -> Path | None:
    """The file of materials that an .obj names, if it is there."""
    for line in file.read_text(encoding="latin-1").splitlines():
        if line.startswith("mtllib "):
            found = file.parent / line.split(None, 1)[1].strip()
            return found if found.is_file() else None
    return None


def _picture(
    vtk: Any, window: Any, renderer: Any, bounds: np.ndarray, azimuth: float, elevation: float
) -> UInt8[np.ndarray, "h w 3"]:
    center, radius = bounds.mean(axis=1), np.linalg.norm(bounds[:, 1] - bounds[:, 0]) / 2
    distance = FRAME_MARGIN * radius / math.sin(math.radians(ANGLE / 2))
    toward = np.array(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    camera = renderer.GetActiveCamera()
    camera.SetViewAngle(ANGLE)
    camera.SetFocalPoint(*center)
    camera.SetPosition(*(center + distance * toward))
    camera.SetViewUp(0, 1, 0)
    renderer.ResetCameraClippingRange()
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    from vtkmodules.util.numpy_support import vtk_to_numpy

    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    return np.ascontiguousarray(pixels[::-1, :, :3])  # the first row of VTK is the lowest


def load_vtk() -> Any:
    """The modules of VTK, whose warnings are turned off.

    Raises:
      RuntimeError: it is not installed.
    """
    try:
        import vtkmodules.all as vtk
    except ImportError as error:
        raise RuntimeError(f"rendering 3-D models needs VTK: pip install 'lumina_jax[views]' ({error})") from None
    vtk.vtkObject.GlobalWarningDisplayOff()
    return vtk
