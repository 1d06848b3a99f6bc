import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Java's default client: it has no time-out and follows no redirects. */
class Client {
    public static void main(String[] arguments) throws Exception {
        var address = URI.create(System.getenv("BASE_URL") + "/images/generations");
        var request = HttpRequest.newBuilder(address)
            .header("Authorization", "Bearer " + System.getenv("KEY"))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(System.getenv("BODY")))
            .build();
        System.out.print(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
