// Renders the description with Swagger UI, which puts itself on the window.

window.SwaggerUIBundle({
  url: String(new URL("../openapi.json", import.meta.url)),
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // asks nobody else
});
