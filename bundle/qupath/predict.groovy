/*
 * Predict the slide that is open in QuPath (0.4 to 0.6) on a MONAI Label server with the MuSTMIL app, and show where
 * the network looked, or what each patch counted for, as tiles. The scores become measurements of the image.
 *
 * Automate > Script editor, File > Open, set what follows, Run. A second run replaces the tiles of the first.
 * For research only. Nothing here is a medical device or fit for diagnosis.
 */
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.time.Duration
import qupath.lib.common.ColorTools
import qupath.lib.io.GsonTools
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import qupath.lib.regions.ImagePlane
import qupath.lib.roi.ROIs
import static qupath.lib.gui.scripting.QPEx.*

def SERVER = "http://127.0.0.1:8000"
def MODEL = "pathology_mustmil_classification"
def IMAGE = ""              // the slide's id on the server; empty: its file's name without the suffix
def HEAD = "global"         // or a magnification: "5x", "10x"
def KIND = "contribution"   // what each patch adds to the class's score; or "attention", where the network looks
def CLASSES = "predicted"   // or "all", or names separated by commas: "cancer,hgd"
def SHARE = 1.0             // the fraction of the slide's patches that is shown, the highest values first
def COORDINATES = "qupath"  // "level0" where QuPath was started with --no-crop
def TIMEOUT_MINUTES = 30    // the first request for a slide encodes it

def NAME = "MuSTMIL"

def fail = { String cause ->
    if (getQuPath() == null) {
        println("${NAME}: ${cause}")
    } else {
        Dialogs.showErrorMessage(NAME, cause)
    }
}
def encode = { String text -> URLEncoder.encode(text, "UTF-8") }

def imageData = getCurrentImageData()
if (imageData == null) {
    fail("no image is open. Open the slide, and run the script again.")
    return
}
def server = imageData.getServer()
def image = IMAGE
if (image.isEmpty()) {
    def files = server.getURIs()
    if (files.isEmpty()) {
        fail("this image has no file. Set IMAGE to the slide's id on the server.")
        return
    }
    image = new File(files.iterator().next().getPath()).getName().replaceFirst(/\.[^.]+$/, "")
}

def choices = [head: HEAD, kind: KIND, classes: CLASSES, share: SHARE, coordinates: COORDINATES]
def body = "params=" + encode(GsonTools.getInstance().toJson(choices))
def response
try {
    def request = HttpRequest.newBuilder(URI.create("${SERVER}/infer/${MODEL}?image=${encode(image)}&output=json"))
        .timeout(Duration.ofMinutes(TIMEOUT_MINUTES))
        .header("Content-Type", "application/x-www-form-urlencoded")
        .POST(HttpRequest.BodyPublishers.ofString(body))
        .build()
    // MONAI Label's server does not upgrade to HTTP/2, which Java asks for by default.
    def client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build()
    response = client.send(request, HttpResponse.BodyHandlers.ofString())
} catch (IllegalArgumentException | IOException error) {
    def cause = error.getMessage() ?: error.getClass().getSimpleName()
    fail("no MONAI Label server answers at ${SERVER} (${cause}). Start it, or set SERVER.".toString())
    return
}

def reply
try {
    reply = GsonTools.getInstance().fromJson(response.body(), Object)
} catch (RuntimeException error) {
    reply = null
}
if (response.statusCode() != 200 || !(reply instanceof Map) || reply.annotation == null) {
    // The app tells what is wrong in `detail`: subject, cause, remedy.
    def told = reply instanceof Map && reply.detail != null ? reply.detail : response.body().take(500)
    fail("${SERVER} answered with status ${response.statusCode()}: ${told}".toString())
    return
}

def tiles = []
def shown = reply.heatmap
reply.annotation.elements.each { element ->
    def colour = reply.annotation.labels[element.label].collect { it as int }
    def pathClass = PathClass.fromString(element.label, ColorTools.packRGB(colour[0], colour[1], colour[2]))
    element.contours.eachWithIndex { contour, i ->
        def x = contour.collect { it[0] } as double[]
        def y = contour.collect { it[1] } as double[]
        def roi = ROIs.createPolygonROI(x, y, ImagePlane.getDefaultPlane())
        def tile = PathObjects.createTileObject(roi, pathClass, null)
        tile.setName(NAME)
        // As the GeoJSON of `inferring` calls them.
        def measured = tile.getMeasurementList()
        measured.put("${shown.kind} percentile (${shown.map}, ${element.label})" as String, element.percentiles[i])
        measured.put("${shown.kind} (${shown.map}, ${element.label})" as String, element.values[i])
        tiles << tile
    }
}
def outside = tiles.find {
    def roi = it.getROI()
    roi.getBoundsX() >= server.getWidth() || roi.getBoundsY() >= server.getHeight() ||
        roi.getBoundsX() + roi.getBoundsWidth() <= 0 || roi.getBoundsY() + roi.getBoundsHeight() <= 0
}
if (outside != null) {
    fail(("patches of ${reply.slide} lie outside of this image. The server's slide of that name is another one, or its " +
        "positions start elsewhere: see COORDINATES.").toString())
    return
}

def hierarchy = imageData.getHierarchy()
hierarchy.removeObjects(hierarchy.getTileObjects().findAll { it.getName() == NAME }, false)
hierarchy.addObjects(tiles)
def measurements = hierarchy.getRootObject().getMeasurementList()
reply.scores.each { head, scores ->
    scores.each { name, score -> measurements.put("${NAME} ${head} ${name}".toString(), score as double) }
}
// Null where the weights have no operating point; the apps of earlier versions send none.
def decided = [:]
reply.operating_point?.each { head, classes ->
    classes.each { name, of ->
        measurements.put("${NAME} ${head} ${name} calibrated".toString(), of.calibrated as double)
        measurements.put("${NAME} ${head} ${name} decision".toString(), of.decision ? 1d : 0d)
    }
    decided[head] = classes.findAll { it.value.decision }.keySet().join(", ") ?: "none"
}
fireHierarchyUpdate()
println("${reply.slide}: ${reply.scores}")
if (!decided.isEmpty()) {
    println("At the operating point: ${decided}")
}
println("${tiles.size()} tiles: ${shown.kind} of ${shown.map}, ${shown.classes.join(', ')}. ${reply.notice}")
