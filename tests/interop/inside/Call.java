import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** Java's own client with Java's own trust store: `java Call.java NONCE`, see programs.py. */
class Call {
    public static void main(String[] words) throws Exception {
        var token = System.getenv("INTEROP_KEY");
        var where = URI.create(System.getenv("API") + "/echo?nonce=" + words[0]);
        var body = HttpRequest.BodyPublishers.ofString("{\"key\":\"" + token + "\"}");
        var call = HttpRequest.newBuilder(where).header("x-api-key", token).POST(body).build();
        var reply = HttpClient.newHttpClient().send(call, BodyHandlers.ofString());
        System.out.println(reply.version() + " " + reply.body());
    }
}
